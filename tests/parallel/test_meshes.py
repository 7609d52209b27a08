"""Tests that whole sweeps on eight fake devices end as on one, on every mesh: a grouped-query model, two seeds."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.commands import known, run_sweep, small_sweep

pytestmark = pytest.mark.slow

SMALLER = {"sweep.methods": ("rule_distill_base",), "sweep.ks": (5,), "task.responses": "teacher"}


def sweep_on(mesh: tuple[int, int, int], model, folder):
    """Returns the cells of a sweep, every seed's adapter, and what the base with the rule answers."""
    sizes = {f"mesh.{axis}": size for axis, size in zip(("data", "fsdp", "tensor"), mesh, strict=True)}
    assert run_sweep(small_sweep(model, **SMALLER, **sizes), folder / "run", folder) == 0
    cells = json.loads((folder / "run" / "sweep.json").read_text())["cells"]
    paths = sorted((folder / "run").rglob("adapter/adapter_model.safetensors"))
    answers = {
        str(path.relative_to(folder)): [json.loads(line)["ids"] for line in path.read_text().splitlines()]
        for path in (folder / "run").rglob("predictions/*.base_with_rule.jsonl")
    }
    return cells, [load_file(path) for path in paths], answers


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    return sweep_on((1, 1, 1), model, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_a_sweep_on_a_mesh_ends_as_on_one_device(mesh, model, alone, tmp_path):
    """The teacher's own answers, cached signals, members side by side, generation, scores."""
    cells, adapters, answers = sweep_on(mesh, model, tmp_path)
    assert len(cells) == len(adapters) == 2
    assert answers == alone[2] and len(answers) == 2 * 3, "of two seeds and three splits"
    for ours, theirs in zip(adapters, alone[1], strict=True):
        for name, tensor in theirs.items():
            np.testing.assert_allclose(ours[name], tensor, atol=1e-3 * max(np.abs(tensor).max(), 1e-3), err_msg=name)
    for ours, theirs in zip(cells, alone[0], strict=True):
        assert list(ours["splits"]) == ["test_id", "test_ood", "retain"]
        for split, systems in theirs["splits"].items():
            for system, scores in systems.items():
                assert known(ours["splits"][split][system]) == pytest.approx(known(scores), rel=1e-3, abs=1e-4)
