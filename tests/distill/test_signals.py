"""Signals that are kept equal those that are asked for anew."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rdjax.data.batches import as_update, batch_shape, collate
from rdjax.distill.signals import cached_signals, online_signals
from rdjax.sharding import make_mesh
from tests.distill.case import PUBLISHED, SHARED, SPEC, assert_close, make_case, random_adapter, random_pairs

SEEDS, COUNT, BATCH = (1, 2), 5, 2


@pytest.mark.parametrize("slots", [SHARED, PUBLISHED])
def test_cached_signals_equal_online_ones(slots):
    case = make_case()
    model = types.SimpleNamespace(graph=case.graph, base=case.base, mesh=make_mesh(base.get_config().mesh))
    pairs = [random_pairs(COUNT, seed) for seed in SEEDS]
    shape = batch_shape([pair for own in pairs for pair in own], slots)
    teachers_M = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(random_adapter(case.config, seed) for seed in SEEDS))
    asked = []

    def make_batch(numbers):
        asked.append(numbers)
        made = [
            as_update(collate([own[number] for number in chosen], 4, shape, slots, eos=257), 2)
            for own, chosen in zip(pairs, numbers, strict=True)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *made)

    cached = cached_signals(model, teachers_M, SPEC.scale, len(SEEDS), COUNT, BATCH, make_batch)
    assert len(asked) == 3, "every pair once"
    numbers = [[4, 0, 2], [1, 3, 3]]
    batch = make_batch(numbers)
    rows = np.array([[[4, 0], [2, 0]], [[1, 3], [3, 0]]])
    ours = cached(rows, batch)
    theirs = online_signals(model, teachers_M, SPEC.scale)(rows, batch)
    # The fourth row is padding: nobody reads its signals.
    real = np.array([[1, 1], [1, 0]])
    masks = real[None, :, None, :, None, None], real[None, :, :, None, None]
    assert_close(*((side.inputs_LBQD * masks[0], side.final_BPD * masks[1]) for side in (ours, theirs)), 1e-5)
