"""Commands around training on a random tiny model: init, inspect, evaluate, the playground, and the Python API."""

import json
import shutil

import pytest

import rdjax
from rdjax import evaluate, init, inspect, playground, train
from rdjax.errors import UserError
from rdjax.evaluation.answers import answer, prompts_of
from tests.commands import run_command, run_to_error

ROWS = [{"input": f"Is {number} a prime?", "output": f"{number % 2}"} for number in range(12, 40)]
SETTINGS = {"lora.rank": 2, "eval.max_new_tokens": 6, "eval.batch_size": 16, "train.updates": 40}
SETTINGS |= {"train.min_updates": 0, "optimizer.learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("rule")
    (root / "rule.md").write_text("Answer with the last binary digit.\n")
    for name, rows in (("train", ROWS[:16]), ("test", ROWS[14:20]), ("retain", ROWS[20:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def arguments(model, folder, workdir) -> list[str]:
    settings = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    task = [f"--config.model.path={model}", f"--config.task.root={folder}", f"--workdir={workdir}"]
    return ["--config=configs/rule.py", *task, *settings]


@pytest.fixture(scope="module")
def inspected(model, folder, tmp_path_factory):
    """Inspects a run, and trains it in the same workdir."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert run_command(inspect.main, *arguments(model, folder, workdir)) == 0
    found = json.loads((workdir / "inspect.json").read_text())
    times = {path: path.stat().st_mtime_ns for path in (workdir / "predictions").iterdir()}
    assert run_command(train.main, *arguments(model, folder, workdir), "--config.log.profile=2") == 0
    return workdir, found, times


def test_inspect_says_what_is_learnt_and_what_it_costs(inspected):
    workdir, found, _ = inspected
    assert found["rule"] == "Answer with the last binary digit."
    assert found["rows"]["train"] + found["rows"]["valid"] == 16 and found["rows"]["retain_train"] == 4
    assert found["overlaps"]["twice in train"] == 0
    assert found["overlaps"]["test"]["also in train"] + found["overlaps"]["test"]["near one of train"] > 0
    assert found["cost"]["updates"] == 40 and found["cost"]["update_seconds"] > 0
    sample = found["samples"][0]
    assert found["rule"] in sample["teacher"] and found["rule"] not in sample["student"]
    page = (workdir / "inspect.html").read_text()
    assert "<mark>" in page and "also in train" in page


def test_training_takes_over_what_inspect_has_answered(inspected):
    workdir, _, times = inspected
    assert (workdir / "eval.json").exists()
    # Verdicts are written anew; the answers of the base come from the inspection.
    assert set(times) <= set((workdir / "predictions").iterdir())


def test_a_profile_is_written_on_request(inspected):
    assert list((inspected[0] / "profile").rglob("*.xplane.pb"))


def test_the_model_card_has_rule_scores_and_use(inspected):
    card = (inspected[0] / "adapter" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    for text in ("> Answer with the last binary digit.", "PeftModel.from_pretrained", "| student", "## Limits"):
        assert text in card


def test_a_run_that_begins_again_logs_its_start_once(model, folder, tmp_path):
    """As after a kill before the first checkpoint."""
    workdir = tmp_path / "run"
    for _ in range(2):
        assert run_command(train.main, *arguments(model, folder, workdir), "--config.eval.systems=()") == 0
        shutil.rmtree(workdir / "checkpoints")
        (workdir / "eval.json").unlink()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["stage"] == "student"]
    assert steps[0] == 0 and len(steps) == len({*steps})


def test_evaluate_finds_the_scores_of_the_training(model, folder, inspected, tmp_path):
    workdir = inspected[0]
    flag = f"--adapters={workdir / 'adapter'},again={workdir / 'adapter'}"
    assert run_command(evaluate.main, *arguments(model, folder, tmp_path / "scores"), flag) == 0
    ours, theirs = (json.loads((run / "eval.json").read_text())["splits"] for run in (tmp_path / "scores", workdir))
    assert set(ours["test"]) == {"base", "base_with_rule", "student", "student_with_rule", "again", "again_with_rule"}
    for split in ("test", "retain"):
        assert ours[split]["again"] == ours[split]["student"]
        for name, value in theirs[split]["student"].items():
            assert ours[split]["student"][name] == pytest.approx(value, abs=1e-4), name


def test_scores_of_other_adapters_or_of_a_training_are_not_taken_over(model, folder, inspected, tmp_path, capfd):
    settings = arguments(model, folder, tmp_path / "scores")
    assert run_command(evaluate.main, *settings) == 0
    failure = run_to_error(evaluate.main, *settings, f"--adapters={inspected[0] / 'adapter'}", capfd=capfd)
    assert "changed since it began: the adapters that are evaluated" in failure.error
    assert "holds a run of rdjax.evaluate, not of rdjax.train" in run_to_error(train.main, *settings, capfd=capfd).error


def test_evaluate_refuses_a_name_twice(model, folder, inspected, tmp_path, capfd):
    flag = f"--adapters=base={inspected[0] / 'adapter'}"
    failure = run_to_error(evaluate.main, *arguments(model, folder, tmp_path / "scores"), flag, capfd=capfd)
    assert failure.status == 2 and "the name 'base' is taken" in failure.error
    with pytest.raises(UserError, match="the name 'one_with_rule' is taken"):
        evaluate.name_adapters([f"{name}={inspected[0] / 'adapter'}" for name in ("one", "one_with_rule")])


def test_init_writes_a_folder_that_trains_and_nothing_over_another(model, tmp_path, capfd):
    assert run_command(init.main, str(tmp_path / "mine")) == 0
    printed = capfd.readouterr().out
    assert f"rdjax.train --config=configs/rule.py --config.task.root={tmp_path / 'mine'} " in printed
    assert (tmp_path / "mine" / "README.md").read_text(encoding="utf-8") in printed
    assert run_to_error(init.main, str(tmp_path / "mine"), capfd=capfd).status == 2
    (tmp_path / "empty").mkdir()
    inode = (tmp_path / "empty").stat().st_ino
    assert run_command(init.main, str(tmp_path / "empty")) == 0 and (tmp_path / "empty").stat().st_ino == inode
    capfd.readouterr()
    assert "give the name" in run_to_error(init.main, capfd=capfd).error
    for path in (tmp_path / "mine").glob("*.example"):
        path.rename(path.with_suffix(""))
    assert run_command(inspect.main, *arguments(model, tmp_path / "mine", tmp_path / "run")) == 0


def test_the_playground_answers_as_the_evaluation_does(inspected):
    prepared, systems, rules = playground.read_run(inspected[0])
    (rule,) = rules.values()
    steps = list(playground.answers(prepared, systems, rule, "Is 18 a prime?", 6))
    assert len(steps) > 1
    row = {"rule": rule, "instruction": "", "input": "Is 18 a prime?", "history": "", "where": "here"}
    prompts = prompts_of(prepared.model, [row], prepared.options)
    expected = [answer(prepared.model, system, prompts, prepared.options)[0].text for system in systems.values()]
    assert steps[-1] == expected


def test_the_playground_refuses_an_answer_that_does_not_fit(inspected):
    prepared, systems, _ = playground.read_run(inspected[0])
    room = min(prepared.model.config.max_positions, prepared.options.max_length)
    with pytest.raises(UserError, match="nothing is cut: shorten the row or raise the limit"):
        next(playground.answers(prepared, systems, "A rule.", "Is 18 a prime?", room))


def test_the_playground_wants_a_finished_run(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        playground.read_run(tmp_path)


def test_a_rule_is_distilled_from_python(model, tmp_path):
    settings = {name.replace(".", "__"): value for name, value in SETTINGS.items()}
    result = rdjax.distill(
        str(model),
        "Answer with the last binary digit.",
        [row["input"] for row in ROWS[:8]],
        test=ROWS[8:12],
        retain=["What is this?", "Who are you?"],
        near_misses=["Is 18 even?", "Is 19 odd?"],
        judge="regex:.",
        workdir=tmp_path / "run",
        **settings,
    )
    assert result.scores["splits"]["near_misses"]["student"]["n"] == 1
    assert result.scores["metric"]["test"] == "regex" and (result.adapter / "adapter_config.json").exists()
    assert isinstance(result.generate("Is 18 a prime?"), str)
    assert len(result.generate(["Is 18 a prime?", "Is 20?"], "base_with_rule")) == 2
    assert "student" in str(result) and "<iframe" in result._repr_html_()
    with pytest.raises(UserError, match="system = 'teacher' is unknown"):
        result.generate("Is 18 a prime?", "teacher")


def test_a_rule_of_another_run_is_not_written_over(model, tmp_path):
    (tmp_path / "run-rule").mkdir()
    (tmp_path / "run-rule" / "train.jsonl").write_text("mine")
    with pytest.raises(UserError, match="holds another rule or rows"):
        rdjax.distill(str(model), "A rule.", ["an input"], workdir=tmp_path / "run")
    assert (tmp_path / "run-rule" / "train.jsonl").read_text() == "mine"


def test_a_field_that_is_none_is_named(model, tmp_path):
    with pytest.raises(UserError, match=r"train\.steps = 3"):
        rdjax.distill(str(model), "A rule.", ["an input"], workdir=tmp_path / "run", train__steps=3)
    with pytest.raises(UserError, match="is a folder: its files have the inputs"):
        rdjax.distill(str(model), tmp_path, ["an input"], workdir=tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs": "train.jsonl"}, "inputs = 'train.jsonl'; accepted: a list"),
        ({"retain": None}, "retain = 'None'; accepted: a list"),
        ({"test": [1]}, "test, row 0: '1'; accepted: a text"),
        ({"inputs": [{"input": "a", "answer": "b"}]}, "inputs, row 0: fields that are not understood: answer"),
        ({"rule": "rules/mine.md"}, "rule = 'rules/mine.md' is no folder"),
        ({"rule": " "}, "rule = ''; accepted: the text of a rule"),
        ({"rule": None}, "rule = None; accepted: the text of a rule"),
        ({"rule": "my_rule"}, "rule = 'my_rule' is no folder"),
        ({"rule": "rule.md"}, "rule = 'rule.md' is no folder"),
        ({"rule": "half \ud83d"}, "rule: has half of a character"),
        ({"inputs": ["half \ud83d"]}, "inputs, row 0: has half of a character"),
        ({"judge": len}, "judge = .*; accepted: a name, such as json"),
        ({"loss__terms": ("nope=1",)}, "nope"),
        ({"task__root": "rules"}, "task__root is given by rule"),
        ({"judge": "json", "eval__judges": ("json",)}, "judge and eval__judges are both given"),
    ],
)
def test_arguments_that_would_be_read_as_something_else_are_refused(model, tmp_path, given, message):
    arguments = {"rule": "Answer in French.", "inputs": ["an input"], **given}
    with pytest.raises(UserError, match=message):
        rdjax.distill(str(model), workdir=tmp_path / "run", **arguments)
    assert not any(tmp_path.iterdir()), "nothing is left behind"
