import random
import re

import pytest
from ml_collections import config_dict

from rdjax.data import tasks
from rdjax.data.tasks import FEATURES, load_task
from rdjax.errors import UserError
from rdjax.tasks.arithmetic import PAPER_RULE, Rule
from rdjax.tasks.documents import DEMOS_LEAD


def task_config(k: int = 8, demos: bool = True, **generated) -> config_dict.ConfigDict:
    defaults = {"value": "sum", "constant": 1, "symbol": "@@@", "train_low": 1, "train_high": 99, "test_rows": 40}
    return config_dict.ConfigDict(
        {
            "name": "arithmetic",
            "root": "",
            "k": k,
            "demos": demos,
            "one_wording": False,
            "generated": defaults | generated,
        }
    )


def operands(row: dict[str, str]) -> tuple[int, int]:
    first, second = re.findall(r"\d+", row["input"])
    return int(first), int(second)


def operands_of(part) -> list[tuple[int, int]]:
    return [operands(row) for row in part]


@pytest.fixture(scope="module")
def splits():
    return load_task(task_config(), seed=0).splits


def test_splits_and_sizes(splits):
    sizes = {name: len(part) for name, part in splits.items()}
    assert sizes == {"train": 8, "valid": 8, "test_id": 40, "test_ood": 40, "retain": 40}
    assert all(part.features == FEATURES for part in splits.values())


def test_no_note():
    assert load_task(task_config(), seed=0).notes == ()


def test_no_question_stands_in_two_splits():
    splits = load_task(task_config(k=64, test_rows=1000), seed=0).splits
    train, valid, test_id, test_ood = (
        set(operands_of(splits[name])) for name in ("train", "valid", "test_id", "test_ood")
    )
    assert len(train) == len(valid) == 64 and len(test_id) == len(test_ood) == 1000
    assert not train & valid and not test_id & (train | valid) and not test_ood & (train | valid | test_id)


def test_ranges():
    splits = load_task(task_config(k=64, test_rows=500), seed=0).splits
    numbers = {name: [n for pair in operands_of(part) for n in pair] for name, part in splits.items()}
    for name in ("train", "valid", "test_id", "retain"):
        assert 1 <= min(numbers[name]) <= 9 and 90 <= max(numbers[name]) <= 99
    assert 121 <= min(numbers["test_ood"]) < 150 and 1950 < max(numbers["test_ood"]) <= 1996


def test_answers_follow_the_rule(splits):
    for name in ("train", "valid", "test_id", "test_ood"):
        assert all({k: row[k] for k in ("input", "output")} == PAPER_RULE.row(*operands(row)) for row in splits[name])


def test_retain_asks_plain_sums(splits):
    for row in splits["retain"]:
        a, b = operands(row)
        assert (row["input"], row["output"]) == (f"{a} + {b} = ?", f"{a + b}.")
        assert row["rule"].startswith(PAPER_RULE.text())


def test_the_same_seed_gives_the_same_rows(splits):
    again, other = (load_task(task_config(), seed=seed).splits for seed in (0, 1))
    for name, part in splits.items():
        assert list(part) == list(again[name]) != list(other[name])


def test_every_row_names_its_place(splits):
    assert splits["test_id"][3]["where"] == "generated test_id, row 3"
    assert set(splits["train"]["instruction"]) == {""}


def test_demos_are_three_other_training_rows(splits):
    train = {f"\n\n### Input:\n{row['input']}\n\n### Response:\n{row['output']}" for row in splits["train"]}
    for part in splits.values():
        for row in part:
            text, demos = row["rule"].split(DEMOS_LEAD)
            assert text == PAPER_RULE.text()
            shown = re.findall(r"\n\n### Input:\n.*\n\n### Response:\n.*", demos)
            assert len(shown) == 3 and "".join(shown) == demos
            assert set(shown) <= train


@pytest.mark.parametrize("k", [2, 3, 8])
def test_a_row_is_never_its_own_demo(k):
    for seed in range(20):
        for row in load_task(task_config(k=k, test_rows=1), seed=seed).splits["train"]:
            assert row["input"] not in row["rule"]


def test_a_lone_sample_has_no_demo():
    splits = load_task(task_config(k=1), seed=0).splits
    assert splits["train"][0]["rule"] == PAPER_RULE.text()


def test_without_demos_the_rule_stands_alone():
    splits = load_task(task_config(demos=False), seed=0).splits
    assert {rule for part in splits.values() for rule in part["rule"]} == {PAPER_RULE.text()}


def test_demos_do_not_change_the_questions(splits):
    bare = load_task(task_config(demos=False), seed=0).splits
    assert [row["input"] for row in bare["train"]] == [row["input"] for row in splits["train"]]


def test_another_rule_and_range():
    config = task_config(value="larger", constant=-7, symbol="&&", train_low=20, train_high=30, demos=False)
    splits = load_task(config, seed=0).splits
    rule = Rule("larger", -7, "&&")
    assert set(splits["train"]["rule"]) == {rule.text()}
    assert all(20 <= number <= 30 for pair in operands_of(splits["train"]) for number in pair)
    assert all(row["output"] == rule.row(*operands(row))["output"] for row in splits["test_ood"])


class Impatient(random.Random):
    """Gives up where a loop would never end."""

    drawn = 0

    def randint(self, low: int, high: int) -> int:
        self.drawn += 1
        assert self.drawn < 10**5, "drew operands for ever"
        return super().randint(low, high)


@pytest.mark.parametrize("options", [{"train_low": 1, "train_high": 3}, {"train_low": 9, "train_high": 3}, {"k": 0}])
def test_operands_that_do_not_suffice_are_an_error(monkeypatch, options):
    monkeypatch.setattr(tasks.random, "Random", Impatient)
    with pytest.raises(UserError, match=r"config\.task\."):
        load_task(task_config(**options), seed=0)
