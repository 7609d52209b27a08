"""Checks what the log says of rows: tests that are trained on too, and outputs that are not used."""

from configs import base
from rdjax.data.tasks import RuleTask, as_datasets
from rdjax.evaluation.judges import make_judge
from rdjax.run.row_notes import row_notes
from tests.data.test_pairs import byte_tokenizer


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
    config.eval.max_new_tokens = 3
    return row_notes(config, task, judges, byte_tokenizer())


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


def test_inputs_that_pull_both_ways_or_choose_the_checkpoint_are_counted():
    found = notes_of(
        task_of(
            train=[("a", "1"), ("b", "2")],
            valid=[("c", "1")],
            test=[("c", "1")],
            near_misses=[("b", ""), ("d", "")],
            retain_train=[("a", "")],
        )
    )
    assert found == [
        "test: 1 of 1 inputs also choose the checkpoint, as rows of valid (first: test.jsonl, line 1)",
        "near_misses: 1 of 2 inputs are rows of train too: there the rule is to be followed, here not "
        "(first: near_misses.jsonl, line 1)",
        "retain_train: 1 of 1 inputs are rows of train too: there the rule is to be followed, here not "
        "(first: retain_train.jsonl, line 1)",
    ]


def test_outputs_that_no_answer_can_match_are_counted():
    task = task_of(train=[("a", "1")], test=[("x", "1234"), ("y", "123")])
    (note,) = notes_of(task, test=make_judge("exact_match", ""))
    assert note == (
        "test: 1 of 2 outputs have more than config.eval.max_new_tokens = 3 tokens; no answer can match them"
    )
    assert notes_of(task, test=make_judge("json", "")) == []


def test_outputs_that_one_row_without_any_puts_out_of_use_are_named():
    task = task_of(train=[("a", "1"), ("b", "")], test=[("x", ""), ("y", "2")], test_hard=[("z", "")])
    train, test = notes_of(task)
    assert train.startswith("train: 1 of 2 rows have an output; they are not used: config.task.responses = gold")
    assert test.startswith("test: 1 of 2 rows have an output") and "test.jsonl, line 1 has none" in test
    assert len(notes_of(task, test=make_judge("json", ""))) == 1


def test_rules_without_a_test_are_named():
    task = task_of(rules=("first", "second"), train=[("a", "1")], first__test=[("x", "1")])
    assert notes_of(task) == ["the rule second has no test"]
    assert notes_of(task_of(rules=("first",), train=[("a", "1")])) == []
