"""Tests a student that starts from an adapter of an earlier rule, while its teacher and the base do not have it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import base
from rdjax import train
from tests.commands import ROWS, RULE, run_command, write_rows

NEW_RULE = "Whatever the question is, answer it in the manner of a pirate who has lost his ship."


@pytest.fixture(scope="module")
def old(model, tmp_path_factory):
    """Returns the workdir of a run of the old rule."""
    return trained(model, tmp_path_factory.mktemp("old"), RULE)


def folder_of(folder, rule: str):
    """Writes a rule's folder."""
    root = folder / "task"
    root.mkdir()
    (root / "rule.md").write_text(rule)
    for split in ("train", "test"):
        write_rows(root / f"{split}.jsonl", ROWS)
    return root


def status_of(model, folder, rule: str, *settings: str) -> int:
    return run_command(
        train.main,
        f"--config={base.__file__}",
        f"--workdir={folder / 'run'}",
        f"--config.model.path={model}",
        "--config.task.name=rule",
        f"--config.task.root={folder_of(folder, rule)}",
        "--config.task.k=0",
        "--config.task.responses=teacher",
        "--config.eval.max_new_tokens=4",
        "--config.eval.systems=('base','base_with_rule','student')",
        "--config.train.valid_every=0",
        "--config.lora.rank=4",
        *settings,
    )


def trained(model, folder, rule: str, *settings: str):
    assert status_of(model, folder, rule, "--config.optimizer.learning_rate=1e-2", *settings) == 0
    return folder / "run"


def answers(workdir, system: str) -> list[list[int]]:
    lines = (workdir / "predictions" / f"test.{system}.jsonl").read_text().splitlines()
    return [json.loads(line)["ids"] for line in lines]


def tensors(workdir):
    return load_file(workdir / "adapter" / "adapter_model.safetensors")


def test_the_student_alone_starts_from_the_adapter(model, old, tmp_path):
    """With a rate of next to nothing the student stays what it started from; base and teacher never were it."""
    settings = (f"--config.model.student_adapter={old / 'adapter'}", "--config.train.updates=1")
    assert status_of(model, tmp_path, NEW_RULE, "--config.optimizer.learning_rate=1e-12", *settings) == 0
    new = tmp_path / "run"
    for name, array in tensors(old).items():
        np.testing.assert_allclose(tensors(new)[name], array, atol=1e-6)
    assert answers(new, "student") == answers(old, "student")
    assert answers(new, "base") == answers(old, "base") != answers(new, "student")


def test_a_rule_is_removed(model, old, tmp_path, capfd):
    """The student comes back to the base; the tests keep the rule, by which the base is told apart from it."""
    settings = (
        *(f"--config.model.student_adapter={old / 'adapter'}", "--config.task.remove_rule=True"),
        *("--config.train.updates=40", "--config.eval.max_new_tokens=4"),
    )
    new = trained(model, tmp_path, RULE, *settings)
    lines = [json.loads(line) for line in (new / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "student"]
    assert losses[-1] < losses[0] / 10
    assert capfd.readouterr().out.count("pairs in rows of") == 1  # no prompt with the rule, to be consistent with
    assert "gap" not in {line["stage"] for line in lines}  # its teacher reads no rule
    assert answers(new, "base") != answers(new, "base_with_rule")
    responses = [json.loads(line) for line in (new / "responses" / "train.jsonl").read_text().splitlines()]
    assert [line["ids"] for line in responses] == answers(new, "base")
    results = json.loads((new / "eval.json").read_text())
    assert results["rule"] == RULE
    left = results["splits"]["test"]
    assert left["student"]["gap_closed"] < 0.2


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("--config.model.student_adapter=", "config.model.student_adapter"),
        ("--config.method=inst_tune_without_rule", "config.method = rule_distill_base"),
        ("--config.task.responses=gold", "config.task.responses = auto or teacher"),
    ],
)
def test_removing_a_rule_needs_a_student_that_has_learnt_it(model, old, tmp_path, setting, named, capfd):
    settings = (f"--config.model.student_adapter={old / 'adapter'}", "--config.task.remove_rule=True", setting)
    assert status_of(model, tmp_path, RULE, *settings) == 2
    assert named in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_student_moves_over_to_the_new_rule(model, old, tmp_path):
    settings = (f"--config.model.student_adapter={old / 'adapter'}", "--config.train.updates=20")
    new = trained(model, tmp_path, NEW_RULE, *settings)
    lines = [json.loads(line) for line in (new / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "student"]
    assert losses[-1] < losses[0] / 2
    assert any(np.abs(tensors(new)[name] - array).max() > 1e-3 for name, array in tensors(old).items())


def test_an_adapter_of_another_form_is_refused(model, old, tmp_path, capfd):
    settings = (f"--config.model.student_adapter={old / 'adapter'}", "--config.lora.rank=8")
    assert status_of(model, tmp_path, NEW_RULE, *settings) == 2
    message = capfd.readouterr().err
    assert "config.lora.rank = 8 but the adapter" in message and "has 4; accepted: the adapter's" in message
    assert not (tmp_path / "run").exists()
