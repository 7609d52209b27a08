"""A prefix that all prompts share is read once, and nothing changes by it."""

import dataclasses

import jax.numpy as jnp
import pytest

from rdjax.data.batches import Prefixes, pair_prefixes
from tests.distill.case import (
    DISTILL,
    GREETING,
    KINDS,
    RULE,
    assert_close,
    loss_and_grad,
    make_case,
    make_update,
    random_adapter,
    ruled_pairs,
)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("kind", "slots"), KINDS)
def test_loss_and_gradient_behind_a_prefix_equal_those_of_whole_prompts(kind, slots, rows):
    """The teacher's rule and the student's template; the gradient goes through the latter too."""
    case, pairs = make_case(), ruled_pairs()
    adapter, teacher = random_adapter(case.config), random_adapter(case.config, seed=2)
    objective = dataclasses.replace(DISTILL, kind=kind)
    prefixes = pair_prefixes(pairs, slots)
    assert prefixes == (16, 16)
    before = {"teacher": jnp.array(RULE[:16]), "student": jnp.array(GREETING[:16])}

    def compute(prefixes, given):
        batch = make_update(pairs, slots, rows, prefixes=prefixes)
        trained = given.get("teacher" if kind == "tune_with_rule" else "student")
        made = loss_and_grad(
            case, adapter, batch, objective, teacher, prefix_C=trained, teacher_prefix_C=given.get("teacher")
        )
        return batch, made

    (long, plain), (short, reused) = compute(Prefixes(), {}), compute(prefixes, before)
    assert short.student.tokens_BT.size < long.student.tokens_BT.size
    assert_close(reused, plain, 1e-5)
