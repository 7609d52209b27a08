"""A prefix that all prompts share is read once, and nothing changes by it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from rdjax.data.prefix import Prefixes, pair_prefixes
from tests.distill.case import (
    DISTILL,
    GREETING,
    KINDS,
    OPTIONS,
    OURS,
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


def test_dropout_of_a_shared_prefix_is_the_same_for_all_that_share_it():
    """However the pairs are dealt to rows and micro-batches; alone, each pair gets the same masks on it too."""
    case, pairs = make_case(), ruled_pairs()
    adapter = random_adapter(case.config)
    given = {
        "options": dataclasses.replace(OPTIONS, dropout=0.5),
        "dropout_key": jax.random.key(3),
        "prefix_C": jnp.array(GREETING[:16]),
    }

    def compute(key=None, **layout):
        batch = make_update(pairs, OURS, prefixes=Prefixes(0, 16), **layout)
        return loss_and_grad(case, adapter, batch, **given | ({"dropout_key": key} if key is not None else {}))

    apart = compute(rows=4)
    for layout in ({"rows": 1}, {"rows": 3, "wider": 5}, {"rows": 1, "accumulation": 2}):
        assert_close(compute(**layout), apart, 1e-5)
    assert float(compute(jax.random.key(4))[0][0]) != float(apart[0][0])
    without = loss_and_grad(
        case, adapter, make_update(pairs, OURS, prefixes=Prefixes(0, 16)), prefix_C=given["prefix_C"]
    )
    assert float(without[0][0]) != float(apart[0][0])
