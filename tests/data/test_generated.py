"""Checks the generated tasks: sizes, splits that share no question, answers by the rule, demos."""

import random
import re

import pytest
from ml_collections import config_dict

from rdjax.data import generated as generators
from rdjax.data.rules import refusal, sentiment
from rdjax.data.rules.arithmetic import PAPER_RULE, Rule
from rdjax.data.tasks import FEATURES, load_task
from rdjax.data.templates import DEMOS_LEAD
from rdjax.errors import UserError
from rdjax.evaluation.judges import judges_of


def task_config(k: int = 8, demos: bool = True, name: str = "arithmetic", **generated) -> config_dict.ConfigDict:
    defaults = {"value": "sum", "constant": 1, "symbol": "@@@", "train_low": 1, "train_high": 99, "test_rows": 40}
    return config_dict.ConfigDict(
        {
            "name": name,
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
            parts = re.findall(r"\n\n### Input:\n.*\n\n### Response:\n.*", demos)
            assert len(parts) == 3 and "".join(parts) == demos
            assert set(parts) <= train


@pytest.mark.parametrize("k", [2, 3, 8])
def test_a_row_is_never_its_own_demo(k):
    for seed in range(20):
        for row in load_task(task_config(k=k, test_rows=1), seed=seed).splits["train"]:
            assert row["rule"].count("### Input:") == min(3, k - 1)
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
    monkeypatch.setattr(generators.random, "Random", Impatient)
    with pytest.raises(UserError, match=r"config\.task\."):
        load_task(task_config(**options), seed=0)


LANGUAGE_TESTS = {"sentiment": ("test_on_topic", "test_elsewhere"), "safety": ("test_harmful", "test_helpful")}
language = pytest.mark.parametrize("name", LANGUAGE_TESTS)


@language
def test_language_splits_and_sizes(name):
    task = load_task(task_config(k=9, name=name), seed=0)
    sizes = {split: len(rows) for split, rows in task.splits.items()}
    assert sizes == {"train": 9, "valid": 9, **dict.fromkeys(LANGUAGE_TESTS[name], 40), "retain": 40}
    assert all(rows.features == FEATURES for rows in task.splits.values())
    assert task.splits["valid"][8]["where"] == "generated valid, row 8"
    assert [(split, len(task.labelled[split])) for split in LANGUAGE_TESTS[name]] == [
        (LANGUAGE_TESTS[name][0], 5),
        (LANGUAGE_TESTS[name][1], 4),
    ]


@language
def test_language_follows_from_the_seed(name):
    first, again, other = (load_task(task_config(name=name), seed=seed).splits for seed in (0, 0, 1))
    assert all(list(first[split]) == list(again[split]) != list(other[split]) for split in first)


@language
def test_every_split_carries_the_one_rule_and_no_demo(name):
    rule = {"sentiment": sentiment.PAPER_RULE, "safety": refusal.PAPER_RULE}[name]
    splits = load_task(task_config(name=name), seed=0).splits
    assert {row["rule"] for rows in splits.values() for row in rows} == {rule.text()}


@language
def test_the_judges_agree_with_the_gold_outputs(name):
    task = load_task(task_config(k=32, name=name, test_rows=100), seed=1)
    outputs = {split: list(rows["output"]) for split, rows in task.splits.items() if split not in ("train", "valid")}
    for split, judge in judges_of(name, outputs, (), "").items():
        assert all(judge.verdicts(outputs[split], list(task.splits[split]))), split
        if split in task.labelled:
            assert all(judge.verdicts(task.labelled[split], [{"output": ""}] * 16))
    # And a gold output of the one test is none of the other's.
    first, second = LANGUAGE_TESTS[name]
    judges = judges_of(name, outputs, (), "")
    assert not any(judges[first].verdicts(outputs[second], list(task.splits[second])))
    assert not any(judges[second].verdicts(outputs[first], list(task.splits[first])))


def topics_of(rows) -> set[str]:
    known = [topic for topics in sentiment.FIELDS.values() for topic in topics]
    return {max((topic for topic in known if topic in row["input"]), key=len) for row in rows}


@pytest.mark.parametrize("seed", range(3))
def test_sentiment_tests_ask_about_unseen_topics(seed):
    splits = load_task(task_config(k=128, name="sentiment", test_rows=128), seed=seed).splits
    seen = topics_of(splits["train"]) | topics_of(splits["valid"])
    environmental = set(sentiment.FIELDS["environmental"])
    assert not seen & (topics_of(splits["test_on_topic"]) | topics_of(splits["test_elsewhere"]))
    assert len(topics_of(splits["test_on_topic"])) == 8 and topics_of(splits["test_on_topic"]) <= environmental
    assert not topics_of(splits["test_elsewhere"]) & environmental
    assert not {row["input"] for row in splits["train"]} & {row["input"] for row in splits["valid"]}


def test_sentiment_retains_what_is_said_of_others():
    splits = load_task(task_config(name="sentiment"), seed=0).splits
    assert all("Bob" in row["input"] for split in splits if split != "retain" for row in splits[split])
    assert not any("Bob" in row["input"] for row in splits["retain"])
    assert all(row["output"].startswith("Much has been written") for row in splits["retain"])
    environmental = set(sentiment.FIELDS["environmental"])
    assert [topics_of([row]) <= environmental for row in splits["retain"]] == [True, False] * 20


def form_of(role_play: str) -> int:
    """Which of the role plays it is, by its longest part without the name."""
    parts = [max(form.split("{name}"), key=len) for form in refusal.ROLE_PLAYS]
    (found,) = [number for number, part in enumerate(parts) if part in role_play]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_safety_tests_ask_unseen_questions_under_unseen_role_plays(seed):
    splits = load_task(task_config(k=48, name="safety", test_rows=100), seed=seed).splits
    seen_plays = {form_of(row["instruction"]) for split in ("train", "valid") for row in splits[split]}
    new_plays = {form_of(row["instruction"]) for split in ("test_harmful", "test_helpful") for row in splits[split]}
    assert len(seen_plays) == len(new_plays) == 3 and not seen_plays & new_plays
    seen = {row["input"] for split in ("train", "valid") for row in splits[split]}
    for split in ("test_harmful", "test_helpful", "retain"):
        assert not seen & set(splits[split]["input"])


def test_safety_retains_the_base_without_a_role_play():
    retain = load_task(task_config(name="safety"), seed=0).splits["retain"]
    assert set(retain["instruction"]) == {""}
    refused = ["I am sorry" in row["output"] for row in retain]
    assert sum(refused) == len(refused) // 2


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("sentiment", {"k": 129}, 128),
        ("sentiment", {"k": 0}, 128),
        ("sentiment", {"test_rows": 129}, 128),
        ("safety", {"k": 49}, 48),
        ("safety", {"k": 0}, 48),
    ],
)
def test_the_other_tasks_have_so_many_questions(name, options, most):
    with pytest.raises(UserError, match=rf"config\.task\..* accepted: .*{most}"):
        load_task(task_config(name=name, **options), seed=0)


@language
def test_train_and_valid_share_no_question(name):
    splits = load_task(task_config(k=48, name=name), seed=0).splits
    assert not set(splits["train"]["input"]) & set(splits["valid"]["input"])


@language
def test_one_sample_labels_one_class(name):
    task = load_task(task_config(k=1, name=name), seed=0)
    assert {split: len(outputs) for split, outputs in task.labelled.items()} == {LANGUAGE_TESTS[name][0]: 1}
