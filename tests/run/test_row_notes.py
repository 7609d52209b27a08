"""Checks what the log says of rows: tests that are trained on too, and outputs that are not used."""

from configs import base
from rdjax.data.tasks import RuleTask, as_datasets
from rdjax.run.row_notes import row_notes


def task_of(rules=(), **splits) -> RuleTask:
    """A task of rows (input, output) by split."""
    empty = {"rule": "R", "instruction": ""}
    rows = {
        split.replace("__", "/"): [
            {**empty, "input": text, "output": output, "where": f"{split}.jsonl, line {number}"}
            for number, (text, output) in enumerate(pairs, start=1)
        ]
        for split, pairs in splits.items()
    }
    return RuleTask(as_datasets(rows), rules=dict.fromkeys(rules, "R"))


def notes_of(task: RuleTask, **judges) -> list[str]:
    config = base.get_config()
    config.task.responses = "auto"
    return row_notes(config, task, judges)


def test_inputs_that_are_trained_on_too_are_counted():
    found = notes_of(
        task_of(
            train=[("a", "1"), ("b", "2")],
            valid=[("c", "1")],
            test=[("x", "1"), ("b", "2")],
            retain=[("r", "")],
            retain_train=[("r", ""), ("x", "")],
        )
    )
    assert found == [
        "test: 1 of 2 inputs are trained on too (first: test.jsonl, line 2)",
        "retain: 1 of 1 inputs are trained on too (first: retain.jsonl, line 1)",
    ]


def test_outputs_that_one_row_without_any_puts_out_of_use_are_named():
    task = task_of(train=[("a", "1"), ("b", "")], test=[("x", ""), ("y", "2")], test_hard=[("z", "")])
    train, test = notes_of(task)
    assert train.startswith("train: 1 of 2 rows have an output; they are not used: config.task.responses = gold")
    assert test.startswith("test: 1 of 2 rows have an output") and "test.jsonl, line 1 has none" in test
    assert len(notes_of(task, test="a judge")) == 1


def test_rules_without_a_test_are_named():
    task = task_of(rules=("first", "second"), train=[("a", "1")], first__test=[("x", "1")])
    assert notes_of(task) == ["the rule second has no test"]
    assert notes_of(task_of(rules=("first",), train=[("a", "1")])) == []
