"""A prefix that all teacher prompts share is read once, and nothing changes by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdjax.data import batches
from rdjax.data.batches import batch_shape, collate, shared_prefix, teacher_prefix
from rdjax.distill.teacher import read_side
from rdjax.models.lora import effective
from tests.distill.case import (
    OURS,
    PUBLISHED,
    RULE,
    SHARED,
    SPEC,
    assert_close,
    make_case,
    random_adapter,
    ruled_pairs,
)


def test_shared_prefix_is_a_multiple_of_eight_that_leaves_every_prompt_a_token():
    assert shared_prefix([(*range(30), 40), (*range(30), 41)]) == 24
    assert shared_prefix([tuple(range(24)), tuple(range(30))]) == 16
    assert shared_prefix([tuple(range(25)), tuple(range(30))]) == 24
    assert shared_prefix([tuple(range(15)), tuple(range(15))]) == 0, "too short to pay"
    assert shared_prefix([(1, *range(30)), tuple(range(30))]) == 0
    assert shared_prefix([[7] * 20]) == 16


@pytest.mark.parametrize("slots", [OURS, SHARED, PUBLISHED])
def test_teacher_prefix_spares_what_the_losses_read(slots, monkeypatch):
    monkeypatch.setattr(batches, "PREFIX_PAYS", 8)
    pairs = [pair for pair in ruled_pairs()[:1] for _ in range(2)]
    prefix = teacher_prefix(pairs, slots)
    whole = collate(pairs, 2, batch_shape(pairs, slots), slots, eos=257)
    assert 8 <= prefix <= whole.teacher.aligned_BQ[0, 0]
    assert whole.teacher.aligned_BQ[0, 0] - prefix < 8


@pytest.mark.parametrize("slots", [OURS, SHARED, PUBLISHED])
def test_signals_behind_a_prefix_equal_those_of_whole_prompts(slots):
    case, pairs = make_case(), ruled_pairs()
    adapter = effective(random_adapter(case.config), SPEC.scale)
    prefix = teacher_prefix(pairs, slots)
    assert prefix == 16

    def read(prefix: int):
        batch = collate(pairs, 5, batch_shape(pairs, slots, prefix), slots, eos=257)
        before = np.array(RULE[:prefix], np.int32) if prefix else None
        signals = jax.jit(lambda side, before: read_side(case.graph, case.base, adapter, side, prefix_C=before))(
            batch.teacher, before
        )
        # Padding shows whatever stands at place 0.
        real = jnp.asarray(batch.hidden_weight_BQ > 0)[None, :, :, None], jnp.asarray(batch.weight_BP > 0)[:, :, None]
        return batch, (signals.inputs_LBQD * real[0], signals.final_BPD * real[1])

    (whole, plain), (short, reused) = read(0), read(prefix)
    assert short.teacher.tokens_BT.shape[1] == whole.teacher.tokens_BT.shape[1] - 16
    assert_close(reused, plain, 1e-5)
