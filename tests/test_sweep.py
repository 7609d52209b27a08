"""Tests sweeps on a random tiny model: every cell, all seeds at once, resumed, failing, reported."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.sweeps import (
    arithmetic,
    rivals,
    rivals_rates,
    rules,
    safety,
    sentiment,
    settings,
    strength,
    unlabelled,
)
from rdjax import sweep
from rdjax.errors import UserError
from rdjax.evaluation import scores
from rdjax.run import pipeline, prepare, side_by_side
from rdjax.storage.sums import SUMS
from tests.commands import run_sweep, small_sweep

SWEEPS = (arithmetic, rivals, rivals_rates, rules, safety, sentiment, settings, strength, unlabelled)


@pytest.mark.parametrize("module", SWEEPS)
def test_the_sweeps_of_configs_pass_their_checks(module):
    config = module.get_config()
    sweep.check_sweep(config)
    with pytest.raises(AttributeError):
        config.train.epoch = 3


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    assert run_sweep(small_sweep(model), folder / "run", folder) == 0
    return folder / "run"


@pytest.mark.slow
def test_every_run_of_every_cell_has_scores(finished):
    summary = json.loads((finished / "sweep.json").read_text())
    assert summary["failed"] == []
    keys = [(cell["method"], cell["k"], cell["seed"]) for cell in summary["cells"]]
    assert sorted(keys) == sorted((m, k, s) for m in ("rule_distill_base", "tune") for k in (2, 5) for s in (0, 7))
    for cell in summary["cells"]:
        assert list(cell["splits"]) == ["test_id", "test_ood", "retain"]
        assert cell["splits"]["test_id"]["student"]["n"] == 3
        assert cell["metric"] == dict.fromkeys(cell["splits"], "exact_match")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sentiment", "safety"])
def test_the_other_tasks_run_from_their_generator_to_the_report(model, tmp_path, task):
    changes = {"task.name": task, "sweep.methods": ("rule_distill_base",), "sweep.ks": (3,), "eval.batch_size": 3}
    assert run_sweep(small_sweep(model, **changes), tmp_path / "run", tmp_path) == 0
    (first, _) = json.loads((tmp_path / "run" / "sweep.json").read_text())["cells"]
    judges = {"sentiment": ("negative", "positive"), "safety": ("refusal", "answer")}[task]
    assert list(first["metric"].values()) == [*judges, "exact_match"]
    assert all(metric in first["splits"][split]["student"] for split, metric in first["metric"].items())
    assert [error["judge"] for error in first["judge_errors"].values()] == list(judges)
    assert all(error["wrong"] == 0 for error in first["judge_errors"].values())
    assert "How often the judges are wrong" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_seed_is_laid_out_as_a_run(finished):
    folder = finished / "cells" / "tune_k5" / "seed7"
    record = json.loads((folder / "config.json").read_text())
    assert record["command"].startswith("python -m rdjax.sweep ")
    assert (record["config"]["seed"], record["config"]["task"]["k"]) == (7, 5)
    assert (record["config"]["method"], record["config"]["lora"]["dropout"]) == ("inst_tune_without_rule", 0.0)
    assert record["config"]["train"]["epochs"] == 2  # 3 updates of 2 an epoch, rounded up
    assert {"adapter", "predictions", "eval.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rule_distill_base", "tune"])
def test_a_seed_of_a_cell_is_what_its_single_run_is(finished, model, method, tmp_path):
    config = sweep.cell_config(small_sweep(model), method, 5, 7)
    alone = prepare.prepare(config, tmp_path / "alone")
    pipeline.train_all([alone], tmp_path / "alone" / "checkpoints")
    ours = load_file(finished / "cells" / f"{method}_k5" / "seed7" / "adapter" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "alone" / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-5, err_msg=name)
    assert max(np.abs(array).max() for name, array in theirs.items() if "lora_B" in name) > 1e-4


@pytest.mark.slow
def test_cells_on_the_same_rows_share_what_the_base_says(finished, model, tmp_path):
    """Marked answers of the first cell are found in another one, unless its prompts differ."""
    first = tmp_path / "first"
    shutil.copytree(finished / "cells" / "rule_distill_base_k2" / "seed0", first)
    for path in (first / "predictions").glob("*.jsonl"):
        path.write_text(path.read_text().replace('"response": "', '"response": "marked '))
    (first / "predictions" / SUMS).unlink()
    for settings_of_tune, marked in (({}, True), ({"task": {"one_wording": True}}, False)):
        config = small_sweep(model, **{"sweep.settings": {"tune": settings_of_tune}})
        own = prepare.prepare(sweep.cell_config(config, "tune", 2, 0), tmp_path / f"run{marked}")
        sweep.share_predictions(own, [first])
        found = {path.name: path.read_text() for path in (own.workdir / "predictions").glob("*.jsonl")}
        assert ("test_id.base_with_rule.jsonl" in found) is marked
        assert not found or found["test_id.base_with_rule.jsonl"].count('"response": "marked ') == 3
        assert not any("student" in name for name in found)


@pytest.mark.slow
def test_seeds_on_the_same_rows_share_what_the_base_says(model, tmp_path, monkeypatch):
    """Rows of a folder are the same for all seeds: three systems answer at the first, and the student at the other."""
    (tmp_path / "rule.md").write_text("Say yes.")
    for name in ("train", "test"):
        rows = [{"input": f"{name} {number}", "output": "yes"} for number in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    systems = ("base", "base_with_rule", "student")
    changes = {"task.name": "rule", "task.root": str(tmp_path), "sweep.methods": ("tune",), "sweep.ks": (3,)}
    asked, answer = [], scores.answer
    monkeypatch.setattr(scores, "answer", lambda *arguments: asked.append(arguments[1]) or answer(*arguments))
    assert run_sweep(small_sweep(model, **changes, **{"eval.systems": systems}), tmp_path / "run", tmp_path) == 0
    assert [system.with_rule for system in asked] == [False, True, False, False]
    (first, other) = ((tmp_path / "run" / "cells" / "tune_k3" / f"seed{seed}" / "predictions") for seed in (0, 7))
    for path in first.glob("*.base*.jsonl"):
        assert (other / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_finished_sweep_trains_nothing_again(finished, model, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run_cell", None)
    assert run_sweep(small_sweep(model), finished, tmp_path) == 0


@pytest.mark.slow
def test_a_failing_cell_is_reported_and_tried_again(model, tmp_path, monkeypatch, capfd):
    config = small_sweep(model, **{"sweep.ks": (2,)})
    run_cell = sweep.run_cell

    def fail_once(runs, folder, finished):
        if "tune" in folder.name:
            raise RuntimeError("out of memory")
        return run_cell(runs, folder, finished)

    monkeypatch.setattr(sweep, "run_cell", fail_once)
    assert run_sweep(config, tmp_path / "run", tmp_path) == 1
    assert "tune, k = 2, seed 0: RuntimeError: out of memory; tune, k = 2, seed 7" in capfd.readouterr().err
    summary = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert {cell["method"] for cell in summary["cells"]} == {"rule_distill_base"}
    assert "out of memory" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.setattr(sweep, "run_cell", run_cell)
    assert run_sweep(config, tmp_path / "run", tmp_path) == 0
    summary = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert {cell["method"] for cell in summary["cells"]} == {"rule_distill_base", "tune"} and not summary["failed"]


@pytest.mark.slow
def test_a_failing_judge_ends_its_seed_alone_and_trains_nothing_again(model, tmp_path, monkeypatch):
    config = small_sweep(model, **{"sweep.methods": ("rule_distill_base",), "sweep.ks": (2,)})
    trained, evaluate_all = [], side_by_side.evaluate_all

    def count(runs, folder):
        trained.append([run.config.seed for run in runs])
        return pipeline.train_all(runs, folder)

    def fail(run, adapters):
        if run.config.seed == 7:
            raise UserError("the judge failed")
        return evaluate_all(run, adapters)

    monkeypatch.setattr(side_by_side, "train_all", count)
    monkeypatch.setattr(side_by_side, "evaluate_all", fail)
    assert run_sweep(config, tmp_path / "run", tmp_path) == 1
    assert trained == [[0, 7]]
    (failed,) = json.loads((tmp_path / "run" / "sweep.json").read_text())["failed"]
    assert (failed["seed"], failed["error"]) == ("7", "the judge failed")
    assert (sweep.run_folder(tmp_path / "run", "rule_distill_base", 2, 0) / "eval.json").exists()


@pytest.mark.slow
def test_a_seed_that_cannot_be_prepared_keeps_no_other_back(model, tmp_path, capfd):
    config = small_sweep(model, **{"sweep.ks": (2,), "sweep.methods": ("tune",)})
    assert run_sweep(config, tmp_path / "run", tmp_path) == 0
    damaged = sweep.run_folder(tmp_path / "run", "tune", 2, 7)
    (damaged / "eval.json").unlink()
    (damaged / "config.json").write_text("{")
    assert run_sweep(config, tmp_path / "run", tmp_path) == 1
    summary = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert [cell["seed"] for cell in summary["cells"]] == [0]
    (failed,) = summary["failed"]
    assert failed["seed"] == "7" and "is not a run's config, or damaged" in failed["error"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ks", (8.5,), r"config\.sweep\.ks = \(8\.5,\); accepted: whole numbers"),
        ("seeds", (True,), r"config\.sweep\.seeds = \(True,\); accepted: whole numbers"),
        ("updates", -5, r"config\.sweep\.updates = -5; accepted: 0"),
    ],
)
def test_a_field_of_a_sweep_is_checked(model, field, value, message):
    config = small_sweep(model)
    with config.ignore_type():
        config.sweep[field] = value
    with pytest.raises(UserError, match=message):
        sweep.check_sweep(config)


@pytest.mark.slow
def test_seeds_that_fail_side_by_side_are_tried_one_by_one(model, tmp_path, monkeypatch):
    train_all = side_by_side.train_all

    def seed_seven_diverges(runs, checkpoints):
        if any(run.config.seed == 7 for run in runs):
            raise UserError("the loss is nan")
        return train_all(runs, checkpoints)

    monkeypatch.setattr(side_by_side, "train_all", seed_seven_diverges)
    config = small_sweep(model, **{"sweep.ks": (2,), "sweep.methods": ("tune",)})
    assert run_sweep(config, tmp_path / "run", tmp_path) == 1
    summary = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert [cell["seed"] for cell in summary["cells"]] == [0]
    assert summary["failed"] == [{"method": "tune", "k": 2, "seed": "7", "error": "the loss is nan"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweep.methods": ("magic",)}, r"'magic' is unknown; accepted: rule_distill_base, .*, tune"),
        ({"sweep.ks": (0,)}, r"config\.sweep\.ks = \(0,\); accepted: numbers of samples from 1 on"),
        ({"sweep.ks": (9000,)}, r"config\.task\.k = 9000"),
        ({"sweep.seeds": (-1,)}, r"config\.seed = -1; accepted: 0 to"),
        ({"eval.judges": ("test_id=kindness",)}, r"'kindness' is unknown"),
        ({"sweep.settings": {"tune": {"task": {"k": 3}}}}, r"sets task\.k or seed"),
        ({"sweep.ks": ()}, r"config\.sweep\.ks = \(\); accepted: one or more"),
        ({"sweep.seeds": (1, 1)}, r"config\.sweep\.seeds"),
        ({"sweep.settings": {"tune": {"lora": {"depth": 3}}}}, r"config\.sweep\.settings\.tune.*depth"),
        ({"sweep.settings": {"tune": {"lora": {"rank": "high"}}}}, r"config\.sweep\.settings\.tune"),
        ({"sweep.settings": {"tune": {"lora": {"rank": 0}}}}, r"config\.lora\.rank = 0"),
        (
            {"sweep.settings": {"tune": {}, "rule_distil_base": {}}},
            r"is of no method; accepted: such as rule_distill_base",
        ),
        ({"sweep.settings": {"tune": {"train": {"updates": 5}}}, "sweep.updates": 4}, r"tune sets train\.updates"),
    ],
)
def test_a_mistake_is_told_before_any_cell_starts(model, changes, message):
    with pytest.raises(UserError, match=message):
        sweep.check_sweep(small_sweep(model, **changes))


def test_a_run_config_is_no_sweep(model):
    config = sweep.cell_config(small_sweep(model), "tune", 2, 0)
    with pytest.raises(UserError, match=r"config\.sweep\.\w+ is missing; a sweep starts from"):
        sweep.check_sweep(config)
