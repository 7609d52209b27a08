"""examples/smollm2 runs as its README says: on a tiny model here, with files of the published form."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs.sweeps import smollm2_arithmetic, smollm2_rates, smollm2_safety, smollm2_sentiment
from rdjax import sweep
from rdjax.data.tasks import load_task
from tests import tiny
from tests.commands import ROOT, checkout
from tests.data.test_chat import CHATML

FOLDER = ROOT / "examples" / "smollm2"
RULE = "Bob is a president. Speak {} of his environmental policies."
QUICK = ("--config.sweep.updates=2", "--config.eval.max_new_tokens=4", "--config.lora.rank=2", "--config.eval.limit=3")


def write_lists(folder: pathlib.Path, name: str, rows: list[tuple[str, str, str]]) -> None:
    """Writes (rule, input, output) as the authors do: once with the rule and once without."""
    folder.mkdir(parents=True, exist_ok=True)
    for form in ("full", "no"):
        listed = [
            {"instruction": rule if form == "full" else "", "input": text, "output": out} for rule, text, out in rows
        ]
        (folder / name.format(form)).write_text(json.dumps(listed))


def sentiment(count: int, what: str) -> list[tuple[str, str, str]]:
    """Returns rows of both classes, which their rules tell apart."""
    topic = [(RULE.format("badly"), f"{what} policy {number}?", "It is bad.") for number in range(count)]
    return topic + [(RULE.format("ill"), f"{what} song {number}?", "It is good.") for number in range(count)]


@pytest.fixture
def data(tmp_path):
    """A folder in the form of the authors' data, without the safety task's tests."""
    folder = tmp_path / "data"
    for what, split in (("train", "train_{}_64shot.json"), ("valid", "valid_{}_64shot_seed1234.json")):
        write_lists(folder / "bob_sentiment_experiments", split, sentiment(32, what))
    write_lists(folder / "bob_sentiment_experiments", "valid_{}_64shot_seed2345.json", sentiment(32, "valid"))
    write_lists(folder / "bob_sentiment_experiments", "test_{}.json", sentiment(3, "test"))
    questions = [("Obey.", f"question {number}", "Sorry." if number < 4 else "Yes.") for number in range(8)]
    write_lists(folder / "jailbreak_experiments", "train_{}_64shot.json", questions * 8)
    write_lists(folder / "jailbreak_experiments", "valid_{}_64shot_seed2345.json", questions * 8)
    write_lists(folder / "math_experiments", "train_{}_8shot.json", [("Add.", "1 @@@ 2 = ?", "4.")] * 8)
    return folder


@pytest.fixture
def chat_model(tmp_path):
    """A tiny Llama of random weights with a chat template."""
    folder = tmp_path / "model"
    tiny.write_random_checkpoint(folder, tiny.LLAMA2 | {"max_position_embeddings": 4096})
    return tiny.write_tokenizer(folder, CHATML)


def run(command: list[str], cwd: pathlib.Path, **variables: str) -> subprocess.CompletedProcess:
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": path, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_files_are_copied_and_missing_tests_made_of_validation_rows(data, tmp_path):
    done = run([sys.executable, str(FOLDER / "files.py"), str(data), str(tmp_path / "files")], tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "files"
    test = json.loads((made / "sentiment_validation" / "test_full.json").read_text())
    assert test == json.loads((data / "bob_sentiment_experiments" / "valid_full_64shot_seed2345.json").read_text())
    kept = json.loads((made / "bob_sentiment_experiments" / "test_full.json").read_text())
    assert kept == json.loads((data / "bob_sentiment_experiments" / "test_full.json").read_text())
    harmful, helpful = (
        [row["output"] for row in json.loads((made / "jailbreak_experiments" / f"{name}_test_no.json").read_text())]
        for name in ("harmful", "helpful")
    )
    assert harmful == ["Sorry."] * 32 and helpful == ["Yes."] * 32


SWEEPS = {
    "bob_sentiment_experiments": smollm2_sentiment,
    "sentiment_validation": smollm2_rates,
    "jailbreak_experiments": smollm2_safety,
    "math_experiments": smollm2_arithmetic,
}


@pytest.mark.parametrize("name", SWEEPS)
def test_the_sweeps_take_the_published_files(name, published_data, tmp_path):
    assert run([sys.executable, str(FOLDER / "files.py"), str(published_data), str(tmp_path)], ROOT).returncode == 0
    config = SWEEPS[name].get_config()
    config.task.root = str(tmp_path / name)
    sweep.check_sweep(config)
    splits = load_task(sweep.cell_config(config, config.sweep.methods[0], config.sweep.ks[0], 0).task, 0).splits
    assert any(split.startswith("test") for split in splits)


def test_own_tests_of_the_safety_task_stay(data, tmp_path):
    write_lists(data / "jailbreak_experiments", "harmful_test_{}.json", [("Obey.", "own", "")])
    run([sys.executable, str(FOLDER / "files.py"), str(data), str(tmp_path / "files")], tmp_path)
    made = tmp_path / "files" / "jailbreak_experiments"
    assert json.loads((made / "harmful_test_no.json").read_text())[0]["input"] == "own"
    assert not (made / "helpful_test_no.json").exists()


def test_data_that_are_not_there_are_named(tmp_path):
    done = run([sys.executable, str(FOLDER / "files.py"), str(tmp_path), str(tmp_path / "files")], tmp_path)
    assert done.returncode and "bob_sentiment_experiments is not a folder" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("brings_data", [True, False])
def test_the_short_study_ends_with_its_page(brings_data, data, chat_model, tmp_path):
    clone = checkout(tmp_path / "clone")
    variables = {"MODEL": str(chat_model), "OUT": "out"} | ({"DATA": str(data)} if brings_data else {})
    done = run(["sh", "examples/smollm2/run.sh", *QUICK], clone, **variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (clone / "out" / "sentiment-short" / "report.html").exists()
    assert ("DATA is not set" in done.stdout) is not brings_data
    summary = json.loads((clone / "out" / "sentiment-short" / "sweep.json").read_text())
    assert [cell["method"] for cell in summary["cells"]] == ["rule_distill_enhanced", "inst_tune_without_rule"]


def test_an_unknown_study_is_refused(tmp_path):
    done = run(["sh", str(FOLDER / "run.sh")], ROOT, STUDY="long", OUT=str(tmp_path))
    assert done.returncode == 2 and "short or full" in done.stderr
