"""Distillation with windows, soft-caps and layers without positions: every way to compute it gives the plain result.

The rule is longer than the windows.
"""

import jax
import pytest

from rdjax.data.prefix import NO_PREFIX
from tests import tiny
from tests.distillation.case import (
    SHARED,
    assert_close,
    loss_and_grad,
    make_case,
    make_update,
    random_adapter,
    ruled_pairs,
)
from tests.distillation.test_groups import Problem
from tests.distillation.test_prefix import PREFIX

FAMILIES = {"windows": tiny.MISTRAL, "windows and soft-caps": tiny.GEMMA2, "no positions": tiny.SMOLLM3}
WINDOW = 9


@pytest.fixture(scope="module", params=FAMILIES)
def fields(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def plain(fields):
    """The case, and loss and gradient of whole prompts, a row for each pair."""
    case, pairs = make_case(fields), ruled_pairs()
    assert len(PREFIX.teacher) > WINDOW and fields.get("sliding_window", WINDOW) == WINDOW
    adapter, teacher = random_adapter(case.config), random_adapter(case.config, seed=2)

    def compute(rows, prefix):
        batch = make_update(pairs, SHARED, rows, prefix=prefix)
        return loss_and_grad(case, adapter, batch, teacher=teacher, prefix=prefix)

    return compute, compute(len(pairs), NO_PREFIX)


@pytest.mark.parametrize("prefix", [NO_PREFIX, PREFIX], ids=["whole prompts", "behind a prefix"])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_packed_rows_and_a_prefix_that_is_read_once(plain, rows, prefix):
    compute, expected = plain
    assert_close(compute(rows, prefix), expected, 1e-5)


def test_members_side_by_side_and_a_mesh_of_eight(fields, tmp_path):
    def compute(members, mesh):
        problem = Problem(members, "host", mesh, tmp_path / f"{members}{len(mesh)}", fields=fields)
        return problem.compute(problem.update)

    together = compute(2, {})
    assert_close(jax.tree.map(lambda leaf: leaf[:1], together), compute(1, {}), 1e-5)
    assert_close(compute(2, {"data": 2, "fsdp": 2, "tensor": 2}), together, 1e-5)
