"""Tests rounds in which a student learns from its own answers."""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from safetensors.numpy import load_file

from configs import base
from rdjax import train
from rdjax.config import check_config
from rdjax.data.pairs import Pair
from rdjax.distillation.stage import Trained
from rdjax.errors import UserError
from rdjax.models.lora import Adapter
from rdjax.run.experiment import Run
from rdjax.run.practice import config_of_round, run_practice, seed_of_round, student_pairs
from rdjax.run.prepare import prepare
from rdjax.run.stages import train_adapters
from tests.commands import ROWS, RULE, run_command, write_rows

SETTINGS = {
    "task.name": "rule",
    "task.k": 0,
    "task.hold_out": 0.0,
    "lora.rank": 4,
    "loss.retain_weight": 0.0,
    "train.updates": 3,
    "train.valid_every": 0,
    "practice.rounds": 2,
    "practice.updates": 4,
    "optimizer.learning_rate": 1e-2,
    "eval.max_new_tokens": 5,
    "eval.systems": ("base_with_rule", "student"),
    "eval.gap_rows": 0,
}


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("task")
    (folder / "rule.md").write_text(RULE)
    for split in ("train", "test"):
        write_rows(folder / f"{split}.jsonl", ROWS)
    return folder


def config_of(model, task, **fields) -> config_dict.ConfigDict:
    config = base.get_config()
    config.model.path, config.task.root = str(model), str(task)
    config.update_from_flattened_dict(SETTINGS | fields)
    return config


def tensors(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return load_file(workdir / "adapter" / "adapter_model.safetensors")


def answers(workdir: pathlib.Path, number: int) -> list[dict]:
    return [json.loads(line) for line in (workdir / "responses" / f"practice_{number}.jsonl").read_text().splitlines()]


def equal(left: Adapter, right: Adapter) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def student_of(run: Run) -> Trained:
    """The student of a run before any training."""
    return Trained(run.start, math.inf, math.inf, run.config.optimizer.learning_rate)


def test_a_round_is_training_on_the_same_answers_given_as_data(model, task, tmp_path):
    """The adapters are the same to the last bit, so the gradients are."""
    fields = {"practice.rounds": 1, "practice.draws": 2, "practice.logit": "reverse_kl"}
    run = prepare(config_of(model, task, **fields), tmp_path / "practice")
    (practised,) = run_practice([run], [student_of(run)], [run.start], tmp_path / "practice" / "checkpoints")
    run.log.close()

    seed = {"practice.rounds": 0, "train.updates": 4, "seed": seed_of_round(run.config.seed, 1)}
    data = prepare(config_of(model, task, **seed, **{"loss.logit": "reverse_kl"}), tmp_path / "data")
    prompts = [pair.prompts for pair in data.train for _ in range(2)]
    lines = zip(prompts, answers(tmp_path / "practice", 1), strict=True)
    pairs = [Pair(prompt, tuple(line["ids"]), line["ended"]) for prompt, line in lines]
    given = dataclasses.replace(data, train=pairs, initial=run.start)
    (trained,) = train_adapters([given], "student", "rule_distill_base", [run.start], tmp_path / "data")
    data.log.close()
    assert equal(practised.adapter, trained.adapter)
    assert not equal(practised.adapter, run.start)


@pytest.fixture(scope="module")
def finished(model, task, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert command(model, task, workdir) == 0
    return workdir


def command(model, task, workdir, *more: str) -> int:
    fields = {"model.path": model, "task.root": task} | SETTINGS
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    return run_command(train.main, f"--config={base.__file__}", f"--workdir={workdir}", *settings, *more)


def test_every_round_has_answers_of_its_own_and_goes_on_from_the_one_before(finished):
    first, second = answers(finished, 1), answers(finished, 2)
    assert len(first) == len(second) == len(ROWS)
    assert [line["input"] for line in first] == [line["input"] for line in second]
    assert [line["ids"] for line in first] != [line["ids"] for line in second]
    assert all(len(line["ids"]) < 5 or not line["ended"] for line in first)  # what was cut has not ended
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"student", "practice_1", "practice_2"} <= {line["stage"] for line in lines}


def test_the_same_command_goes_on_after_the_first_round(model, task, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    for folder in ("adapter", "checkpoints/practice_2"):
        shutil.rmtree(workdir / folder)
    for name in ("eval.json", "responses/practice_2.jsonl"):
        (workdir / name).unlink()
    before = (workdir / "responses" / "practice_1.jsonl").stat().st_mtime_ns
    assert command(model, task, workdir) == 0
    assert (workdir / "responses" / "practice_1.jsonl").stat().st_mtime_ns == before
    assert answers(workdir, 2) == answers(finished, 2)
    for name, array in tensors(finished).items():
        np.testing.assert_array_equal(tensors(workdir)[name], array)


def test_without_updates_before_it_practice_starts_from_the_base(model, task, tmp_path):
    run = prepare(config_of(model, task, **{"train.updates": 0}), tmp_path / "run")
    (student,) = train_adapters([run], "student", run.config.method, [run.start], tmp_path / "checkpoints")
    assert equal(student.adapter, run.start)
    run.log.close()


def test_replay_has_the_training_pairs_too(model, task, tmp_path, monkeypatch):
    run = prepare(config_of(model, task, **{"practice.replay": True}), tmp_path / "run")
    trained: list[Run] = []

    def train_round(runs, name, method, teachers, folder):
        trained.extend(runs)
        return [student_of(run) for run in runs]

    monkeypatch.setattr("rdjax.run.practice.train_adapters", train_round)
    run_practice([run], [student_of(run)._replace(rate=3e-3)], [run.start], tmp_path)
    run.log.close()
    assert [each.config.optimizer.learning_rate for each in trained] == [3e-3, 3e-3], "the rate that training found"
    for number, each in enumerate(trained, start=1):
        own, given = each.train[: len(ROWS)], each.train[len(ROWS) :]
        assert [list(pair.response_ids) for pair in own] == [line["ids"] for line in answers(tmp_path / "run", number)]
        assert given == run.train


def test_runs_side_by_side_answer_apart(model, task, tmp_path):
    runs = [prepare(config_of(model, task, seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    rounds = [dataclasses.replace(run, config=config_of_round(run.config, 1, 1e-2), initial=run.start) for run in runs]
    first, second = (student_pairs(each, "practice_1") for each in rounds)
    assert [pair.response_ids for pair in first] != [pair.response_ids for pair in second]
    both = run_practice(runs, list(map(student_of, runs)), [run.start for run in runs], tmp_path / "both")
    (alone,) = run_practice(runs[:1], [student_of(runs[0])], [runs[0].start], tmp_path / "alone")
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-5), both[0].adapter, alone.adapter)
    for run in runs:
        run.log.close()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"method": "inst_tune_without_rule"}, "config.method = inst_tune_without_rule"),
        ({"train.updates": 0, "practice.rounds": 0}, "config.train.updates = 0"),
        ({"train.updates": 0, "eval.systems": ("inst_tune_without_rule",)}, "inst_tune_without_rule untrained"),
        ({"practice.logit": "none", "loss.hidden_weight": 0.0}, "config.practice.logit"),
        ({"practice.draws": 2, "practice.temperature": 0.0}, "config.practice.draws = 2"),
        ({"practice.learning_rate": 0.0}, "config.practice.learning_rate"),
        ({"loss.variant": "published"}, "config.loss.variant = ours"),
        ({"loss.hidden_layers": (-1,)}, "config.loss.hidden_layers"),
    ],
)
def test_what_does_not_go_together_is_refused(model, task, fields, named):
    with pytest.raises(UserError, match=named):
        check_config(config_of(model, task, **fields))


def test_layers_that_the_model_has_not_are_refused(model, task, tmp_path):
    with pytest.raises(UserError, match="hidden_layers: 2 is none of the 2 layers"):
        prepare(config_of(model, task, **{"loss.hidden_layers": (0, 2)}), tmp_path / "run")
