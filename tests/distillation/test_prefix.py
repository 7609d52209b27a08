"""Checks that a prefix that all prompts share can be read once, and that nothing changes by it."""

import jax
import pytest

from rdjax.data.prefix import NO_PREFIX, SharedPrefix, shared_prefix
from tests.distillation.case import (
    GREETING,
    KINDS,
    OBJECTIVES,
    OURS,
    RULE,
    assert_close,
    loss_and_grad,
    make_case,
    make_update,
    random_adapter,
    ruled_pairs,
)

PREFIX = SharedPrefix(RULE[:16], GREETING[:16])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("kind", "positions"), KINDS)
def test_loss_and_gradient_behind_a_prefix_equal_those_of_whole_prompts(kind, positions, rows):
    """The teacher's prefix is its rule, the student's its template; the gradient goes through the latter too."""
    case, pairs = make_case(), ruled_pairs()
    adapter, teacher = random_adapter(case.config), random_adapter(case.config, seed=2)
    assert shared_prefix(pairs, positions) == PREFIX

    def compute(prefix):
        batch = make_update(pairs, positions, rows, prefix=prefix)
        return batch, loss_and_grad(case, adapter, batch, OBJECTIVES[kind], teacher, prefix)

    (long, plain), (short, reused) = compute(NO_PREFIX), compute(PREFIX)
    assert short.student.tokens_BT.size < long.student.tokens_BT.size
    assert_close(reused, plain, 1e-5)


def test_dropout_of_a_shared_prefix_is_the_same_for_all_that_share_it():
    """However the pairs are dealt to rows and micro-batches; alone, each pair gets the same masks on it too."""
    case, pairs = make_case(), ruled_pairs()
    adapter, prefix = random_adapter(case.config), SharedPrefix((), PREFIX.student)

    def compute(key=3, dropout=0.5, **layout):
        batch = make_update(pairs, OURS, prefix=prefix, **layout)
        key = jax.random.key(key)
        return loss_and_grad(case, adapter, batch, prefix=prefix, dropout_key=key, dropout=dropout)

    apart = compute(rows=4)
    for layout in ({"rows": 1}, {"rows": 3, "wider": 5}, {"rows": 1, "accumulation": 2}):
        assert_close(compute(**layout), apart, 1e-5)
    assert float(compute(key=4)[0][0]) != float(apart[0][0]) != float(compute(dropout=0.0)[0][0])
