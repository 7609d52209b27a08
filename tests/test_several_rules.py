"""Tests a whole run of several rules in one adapter, and the student that keeps to its rule when it reads it again."""

import html
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import base
from rdjax import train, train_each
from rdjax.distillation.job import load_signals, make_job
from rdjax.distillation.progress import stack_adapters
from rdjax.distillation.step import evaluate_loss, init_state
from rdjax.distillation.updates import put_update
from rdjax.errors import UserError
from rdjax.run.distil import run_experiment
from rdjax.run.prepare import prepare
from rdjax.run.stages import stage_of
from tests.commands import ROWS, RULE, run_command, write_rows

OTHER_RULE = "Answer in capital letters, whatever you are asked, and never explain yourself."


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    for name, rule in (("first", RULE), ("second-1", OTHER_RULE)):
        folder = root / "rules" / name
        folder.mkdir(parents=True)
        (folder / "rule.md").write_text(rule)
        for split in ("train", "test"):
            write_rows(folder / f"{split}.jsonl", ROWS)
    write_rows(root / "retain.jsonl", ROWS[:4])
    write_rows(root / "rules" / "first" / "near_misses.jsonl", ROWS[3:])
    return root


def config_of(model, root):
    config = base.get_config()
    config.model.path, config.task.name, config.task.root, config.task.k = str(model), "rule", str(root), 0
    config.task.responses, config.eval.max_new_tokens, config.eval.gap_rows = "teacher", 4, 0
    config.optimizer.learning_rate, config.lora.dropout, config.loss.consistency_weight = 1e-2, 0.0, 0.5
    config.train.valid_every, config.train.updates = 0, 6
    return config


@pytest.fixture(scope="module")
def workdir(model, root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "several"
    settings = (
        f"--config.model.path={model}",
        "--config.task.name=rule",
        f"--config.task.root={root}",
        "--config.task.k=0",
        "--config.task.responses=teacher",
        "--config.eval.max_new_tokens=4",
        "--config.eval.judges=('second-1/test=regex:[a-z]',)",
        "--config.loss.consistency_weight=0.5",
        "--config.train.updates=6",
        "--config.lora.rank=4",
    )
    assert run_command(train.main, f"--config={base.__file__}", f"--workdir={workdir}", *settings) == 0
    return workdir


def test_every_rule_has_its_own_scores_and_predictions(workdir):
    results = json.loads((workdir / "eval.json").read_text())
    tests, retained = {"first/test", "second-1/test"}, {"retain", "first/near_misses"}
    assert set(results["splits"]) == {*tests, *retained}
    assert results["metric"] == {"second-1/test": "regex"} | dict.fromkeys({"first/test", *retained}, "exact_match")
    for split in retained:
        assert results["splits"][split]["student"]["gap_closed"] is None
        assert (
            results["splits"][split]["student"]["kl_from_base"] > 0 == results["splits"][split]["base"]["kl_from_base"]
        )
    assert results["rule"] == f"first: {RULE}\n\nsecond-1: {OTHER_RULE}"
    for name, rule, other in (("first", RULE, OTHER_RULE), ("second-1", OTHER_RULE, RULE)):
        lines = (workdir / "predictions" / name / "test.base_with_rule.jsonl").read_text().splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines]
        assert all(rule in prompt and other not in prompt for prompt in prompts)


def test_the_page_and_the_card_name_every_rule(workdir):
    page, card = (workdir / "report.html").read_text(), (workdir / "adapter" / "README.md").read_text()
    for text in (RULE, OTHER_RULE.split(",")[0], "second-1"):
        assert text in page and text in card
    for text in (
        "One adapter, 2 tested rules, 2 tests.",
        "inputs that do not meet the rule&#39;s condition (first/near_misses)",
    ):
        assert text in page and html.unescape(text) in card


def test_a_split_of_no_rule_is_refused(model, root, tmp_path, capfd):
    arguments = (f"--config={base.__file__}", f"--workdir={tmp_path / 'run'}", f"--config.model.path={model}")
    settings = ("--config.task.name=rule", f"--config.task.root={root}", "--config.task.k=0")
    assert run_command(train.main, *arguments, *settings, "--config.eval.judges=('third/test=json',)") == 2
    assert "no such split; accepted: first/near_misses, first/test, second-1/test, retain" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def losses_of(config, workdir) -> dict[str, np.ndarray]:
    """Returns the loss of each group in the first update, at the adapter that a run starts from, which is noise."""
    run = prepare(config, workdir)
    noise = jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(jax.random.key(1), leaf.shape), run.start)
    stage, members = stage_of([run], "student", config.method, [run.start])
    job = make_job(stage, run.model, members, config, workdir / "checkpoints")
    state = init_state(stack_adapters([run.start]), job.optimizer)
    job = load_signals(job, state, workdir / "signals")
    update = put_update(
        job.loaders, [loader.fetch(numbers) for loader, numbers in zip(job.loaders, job.updates[0], strict=True)]
    )
    settings = job.step.keywords["settings"]
    names = ("on_rule", "off_rule", "near_misses", "consistency")
    found = {}
    for number, name in enumerate(names):
        alone = settings.__class__(**{**vars(settings), "objectives": (settings.objectives[number],)})
        for label, adapter in (("start", run.start), ("noise", noise)):
            loss = evaluate_loss(stack_adapters([adapter]), run.model.base, (update[number],), settings=alone)
            found[f"{name} {label}"] = float(loss[0])
    return found


def test_a_student_that_reads_the_rule_is_held_to_its_teacher(model, root, tmp_path):
    """Before training it is its teacher, on the rule's inputs with the rule and on others without."""
    losses = losses_of(config_of(model, root), tmp_path / "run")
    assert losses["on_rule start"] > 1e-3
    for group in ("off_rule", "near_misses", "consistency"):
        assert abs(losses[f"{group} start"]) < 1e-6 and losses[f"{group} noise"] > 1e-4


def test_an_adapter_for_each_rule_equals_one_trained_alone(model, root, tmp_path):
    """Together they share one copy of the model; each folder is a run's, and a second call only reads."""
    config = config_of(model, root)
    config.eval.systems = ("base", "base_with_rule", "student")
    config.eval.judges = ("second-1/test=regex:[a-z]",)  # of a split that the other rule's run does not have
    assert train_each.train_each(config, tmp_path / "each", together=16) == {}
    assert train_each.train_each(config, tmp_path / "each", together=16) == {}
    alone = train_each.rule_config(config, "first")
    run_experiment(alone, tmp_path / "alone")
    for name in ("first", "second-1"):
        assert {"adapter", "eval.json", "report.html", "predictions"} <= {
            path.name for path in (tmp_path / "each" / name).iterdir()
        }
        assert (tmp_path / "each" / name / "adapter" / "README.md").exists()
    summary = json.loads((tmp_path / "each" / "summary.json").read_text())
    assert summary["metric"]["second-1/test"] == "regex" and summary["metric"]["first/test"] == "exact_match"
    assert set(summary["splits"]) == {
        "first/near_misses",
        *(f"{name}/{split}" for name in ("first", "second-1") for split in ("test", "retain")),
    }
    ours, theirs = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("each/first", "alone")
    )
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], atol=2e-4)
    # One whose scores are gone is evaluated again; neither is trained again.
    (tmp_path / "each" / "second-1" / "eval.json").unlink()
    metrics = tmp_path / "each" / "second-1" / "metrics.jsonl"
    before, folders = metrics.read_text(), sorted((tmp_path / "each" / "checkpoints").iterdir())
    assert train_each.train_each(config, tmp_path / "each", together=16) == {}
    assert metrics.read_text() == before and sorted((tmp_path / "each" / "checkpoints").iterdir()) == folders
    other = load_file(tmp_path / "each" / "second-1" / "adapter" / "adapter_model.safetensors")
    assert any(np.abs(other[name] - array).max() > 1e-2 for name, array in ours.items())


def test_a_rule_that_cannot_be_prepared_keeps_no_other_back(model, root, tmp_path, monkeypatch):
    def prepare_all_but_one(config, workdir, *more):
        if workdir.name == "first":
            raise UserError("none of the 4 responses is confirmed")
        return prepare(config, workdir, *more)

    config = config_of(model, root)
    config.train.updates, config.eval.systems = 1, ("student",)
    monkeypatch.setattr(train_each, "prepare", prepare_all_but_one)
    failures = train_each.train_each(config, tmp_path / "each", together=16)
    assert failures == {"first": "none of the 4 responses is confirmed"}
    assert (tmp_path / "each" / "second-1" / "eval.json").exists()
    monkeypatch.undo()
    metrics = tmp_path / "each" / "second-1" / "metrics.jsonl"
    before = metrics.read_text()
    assert train_each.train_each(config, tmp_path / "each", together=16) == {}
    assert (tmp_path / "each" / "first" / "eval.json").exists() and metrics.read_text() == before
