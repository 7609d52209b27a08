"""Rows that validate, and rows off the rule that are trained on: what `divide` takes away, and from where."""

import datasets
import pytest

from rdjax.data.tasks import MOST_RETAINED, RuleTask, as_datasets, divide


def task(**counts: int) -> RuleTask:
    empty = {"rule": "R", "instruction": "", "output": ""}
    splits = {
        split: [{**empty, "input": f"{split} {number}", "where": f"{split} {number}"} for number in range(count)]
        for split, count in counts.items()
    }
    return RuleTask(as_datasets(splits))


def inputs(splits: datasets.DatasetDict, *names: str) -> list[str]:
    return sorted(text for name in names for text in splits[name]["input"])


def test_a_share_of_the_training_rows_validates():
    before = task(train=20)
    splits = divide(before, 0.2, True, seed=0).splits
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 16, "valid": 4}
    assert inputs(splits, "train", "valid") == inputs(before.splits, "train")
    assert divide(before, 0.2, True, seed=1).splits["valid"]["input"] != splits["valid"]["input"]


def test_one_row_at_least_is_trained_on():
    splits = divide(task(train=16), 0.98, True, seed=0).splits
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 1, "valid": 15}


@pytest.mark.parametrize("counts", [{"train": 11}, {"train": 20, "valid": 3}])
def test_few_rows_or_rows_of_the_users_own_stay(counts):
    splits = divide(task(**counts), 0.2, True, seed=0).splits
    assert {name: len(rows) for name, rows in splits.items()} == counts


def test_half_of_the_rows_off_the_rule_are_trained_on_and_the_others_tested():
    before = task(train=4, retain=9)
    splits = divide(before, 0.2, True, seed=0).splits
    assert (len(splits["retain_train"]), len(splits["retain"])) == (4, 5)
    assert inputs(splits, "retain", "retain_train") == inputs(before.splits, "retain")
    many = divide(task(train=4, retain=500), 0.2, True, seed=0).splits
    assert len(many["retain_train"]) == MOST_RETAINED


def test_rows_to_train_on_that_the_user_names_are_taken_as_they_are():
    splits = divide(task(train=4, retain=9, retain_train=3), 0.2, True, seed=0).splits
    assert (len(splits["retain_train"]), len(splits["retain"])) == (3, 9)
    without = divide(task(train=4, retain=9, retain_train=3), 0.2, False, seed=0).splits
    assert set(without) == {"train", "retain"} and len(without["retain"]) == 9


def test_near_misses_of_several_rules_are_divided_each_and_trained_on_together():
    before = task(**{"train": 4, "retain": 4, "first/near_misses": 6, "second/near_misses": 5})
    splits = divide(before, 0.2, True, seed=0).splits
    counts = {"retain": 2, "retain_train": 2, "first/near_misses": 3, "second/near_misses": 3, "near_misses_train": 5}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4, **counts}
    parts = [name for name in splits if "near" in name]
    assert inputs(splits, *parts) == inputs(before.splits, "first/near_misses", "second/near_misses")
    assert not any(name.endswith("_train") for name in divide(before, 0.2, False, seed=0).splits)


def test_a_task_without_training_rows_is_divided_too():
    assert set(divide(task(test=3, retain=4), 0.2, True, seed=0).splits) == {"test", "retain", "retain_train"}
