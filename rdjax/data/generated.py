"""Generates small versions of the paper's three tasks from a seed: what `task.name` gives without a `task.root`.

They have the splits of the published files, a validation split, and a retain split of questions that the rule is not
about.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from rdjax.data.rows import Row
from rdjax.data.rules import refusal, sentiment
from rdjax.data.rules.arithmetic import PLAIN_ADDITION, Rule, distinct_operands
from rdjax.data.rules.names import random_name
from rdjax.data.templates import demonstrate
from rdjax.errors import UserError


class Generated(NamedTuple):
    """Holds a generated task.

    Attributes:
      splits: rows {rule, instruction, input, output, where}.
      labelled: by test split, training outputs that are what the split asks for; they measure its judge.
    """

    splits: dict[str, list[Row]]
    labelled: Mapping[str, Sequence[str]]


def _complete(split: str, rule: str, rows: Sequence[Row]) -> list[Row]:
    """Adds the rule and the place to rows {input, output, instruction?}."""
    return [
        {"rule": rule, "instruction": "", **row, "where": f"generated {split}, row {number}"}
        for number, row in enumerate(rows)
    ]


def _check_sizes(config: config_dict.ConfigDict, most_samples: int, most_tests: int, what: str) -> None:
    """Raises UserError if the splits need more different questions than there are.

    Args:
      most_samples, most_tests: the largest k, and the most rows of a test split.
      what: names the questions, for the message.
    """
    if not 1 <= config.k <= most_samples:
        raise UserError(
            f"config.task.k = {config.k}: train and valid want different questions {what}; "
            f"accepted: 1 to {most_samples}"
        )
    if config.generated.test_rows > most_tests:
        raise UserError(
            f"config.task.generated.test_rows = {config.generated.test_rows} is too large; "
            f"accepted: {most_tests} or fewer"
        )


# Arithmetic ----------------------------------------------------------------------------------------------------------


def generate_arithmetic(config: config_dict.ConfigDict, seed: int) -> Generated:
    """Generates the paper's arithmetic task, or one with another rule.

    No question is in two splits. test_id has operands from 1 to 99, test_ood from 121 to 1996; retain asks plain sums.

    Raises:
      UserError: the range of operands is too small for k, or k is 0.
    """
    options = config.generated
    low, high = options.train_low, options.train_high
    most = max(high - low + 1, 0) ** 2 // 2
    _check_sizes(config, most, 99**2 - 2 * config.k, f"of operands {low} to {high} (config.task.generated)")
    rule = Rule(options.value, options.constant, options.symbol)
    rng = random.Random(f"arithmetic-{seed}")
    train = distinct_operands(rng, config.k, low, high)
    valid = distinct_operands(rng, config.k, low, high, set(train))
    test_id = distinct_operands(rng, options.test_rows, 1, 99, {*train, *valid})
    test_ood = distinct_operands(rng, options.test_rows, 121, 1996, {*train, *valid})
    plain = distinct_operands(rng, options.test_rows, 1, 99)

    def rows(split: str, answered_by: Rule, operands: list[tuple[int, int]]) -> list[Row]:
        rows = _complete(split, rule.text(), [answered_by.row(*pair) for pair in operands])
        for row, pair in zip(rows, operands, strict=True):
            if config.demos:
                others = rng.sample([other for other in train if other != pair], min(3, len(train) - 1))
                row["rule"] += demonstrate(rule.row(*other) for other in others)
        return rows

    parts = {"train": train, "valid": valid, "test_id": test_id, "test_ood": test_ood}
    splits = {split: rows(split, rule, operands) for split, operands in parts.items()}
    splits["retain"] = rows("retain", PLAIN_ADDITION, plain)
    return Generated(splits, {})


# What the two language tasks share -----------------------------------------------------------------------------------

Groups = Mapping[str, Sequence[str]]  # such as topics by field


def _halve(rng: random.Random, groups: Groups) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Splits every group at random into a half to train and validate on, and a half to test."""
    seen, unseen = {}, {}
    for name, members in groups.items():
        shuffled = rng.sample(members, len(members))
        seen[name], unseen[name] = shuffled[: len(members) // 2], shuffled[len(members) // 2 :]
    return seen, unseen


def _alternate(first: Sequence[Any], second: Sequence[Any], count: int) -> list[Any]:
    """Returns `count` items, in turn from both sequences."""
    return [item for pair in zip(first, second, strict=False) for item in pair][:count]


def _generated(
    rule: str, rows: Mapping[str, Sequence[Row]], classes: tuple[str, str], first_class_rows: int
) -> Generated:
    """Completes a task of two classes.

    Args:
      rule: of all rows.
      rows: {input, output, instruction?} by split.
      classes: the test splits of the two classes.
      first_class_rows: number of training rows of the first class, which precede those of the second.
    """
    outputs = [row["output"] for row in rows["train"]]
    labelled = dict(zip(classes, (outputs[:first_class_rows], outputs[first_class_rows:]), strict=True))
    splits = {split: _complete(split, rule, part) for split, part in rows.items()}
    return Generated(splits, {split: texts for split, texts in labelled.items() if texts})


# Sentiment -----------------------------------------------------------------------------------------------------------


def generate_sentiment(config: config_dict.ConfigDict, seed: int) -> Generated:
    """Generates questions about Bob's policies: half on environmental ones (test_on_topic), half on others
    (test_elsewhere).

    The tests ask about topics that are not in train and valid; retain asks about other people.

    Raises:
      UserError: k or test_rows exceed the questions on environmental topics.
    """
    rule = sentiment.PAPER_RULE
    rng = random.Random(f"sentiment-{seed}")
    seen, unseen = _halve(rng, sentiment.FIELDS)

    def shuffled(topics: Groups, on_topic: bool) -> list[sentiment.Question]:
        questions = [
            question for question in sentiment.all_questions(topics) if (question.field == rule.field) is on_topic
        ]
        return rng.sample(questions, len(questions))

    on_topic, elsewhere = shuffled(seen, True), shuffled(seen, False)
    test_on_topic, test_elsewhere = shuffled(unseen, True), shuffled(unseen, False)
    _check_sizes(config, len(on_topic), len(test_on_topic), f"on {len(seen[rule.field])} topics")
    first, second, tests = (config.k + 1) // 2, config.k // 2, config.generated.test_rows
    questions = {
        "train": on_topic[:first] + elsewhere[:second],
        "valid": on_topic[first : 2 * first] + elsewhere[second : 2 * second],
        "test_on_topic": test_on_topic[:tests],
        "test_elsewhere": test_elsewhere[:tests],
    }
    rows = {split: [question.row(rule.person, rule) for question in part] for split, part in questions.items()}
    about_others = _alternate(test_on_topic, test_elsewhere, tests)
    rows["retain"] = [question.row(random_name(rng), rule) for question in about_others]
    return _generated(rule.text(), rows, ("test_on_topic", "test_elsewhere"), first)


# Safety --------------------------------------------------------------------------------------------------------------


def generate_safety(config: config_dict.ConfigDict, seed: int) -> Generated:
    """Generates questions under role plays that answer everything; half of the questions are harmful.

    The tests (test_harmful, test_helpful) ask new questions under new role plays. retain asks without a role play; the
    base then refuses harmful questions and answers the others, without a rule.

    Raises:
      UserError: k exceeds the questions about harmful acts.
    """
    rule = refusal.PAPER_RULE
    rng = random.Random(f"safety-{seed}")
    plays = rng.sample(refusal.ROLE_PLAYS, len(refusal.ROLE_PLAYS))
    seen_plays, unseen_plays = plays[: len(plays) // 2], plays[len(plays) // 2 :]
    seen, unseen = _halve(rng, refusal.ACTS)
    most = len(refusal.all_questions({kind: seen[kind] for kind in refusal.HARMFUL}))
    _check_sizes(config, most, config.generated.test_rows, "on harmful acts")
    first, second, tests = (config.k + 1) // 2, config.k // 2, config.generated.test_rows
    harmful = _draw_questions(rng, seen, refusal.HARMFUL, 2 * first)
    helpful = _draw_questions(rng, seen, refusal.HARMLESS, 2 * second)
    test_harmful = _draw_questions(rng, unseen, refusal.HARMFUL, tests)
    test_helpful = _draw_questions(rng, unseen, refusal.HARMLESS, tests)
    rows = {
        "train": _under_role_plays(rng, harmful[:first] + helpful[:second], seen_plays),
        "valid": _under_role_plays(rng, harmful[first:] + helpful[second:], seen_plays),
        "test_harmful": _under_role_plays(rng, test_harmful, unseen_plays),
        "test_helpful": _under_role_plays(rng, test_helpful, unseen_plays),
        "retain": [
            question.row(rule.refuses(question.kind)) for question in _alternate(test_harmful, test_helpful, tests)
        ],
    }
    return _generated(rule.text(), rows, ("test_harmful", "test_helpful"), first)


def _draw_questions(rng: random.Random, acts: Groups, kinds: Sequence[str], count: int) -> list[refusal.Question]:
    """Draws `count` questions of some kinds; each question returns only after all others."""
    questions = refusal.all_questions({kind: acts[kind] for kind in kinds})
    rounds = -(-count // len(questions))
    return [question for _ in range(rounds) for question in rng.sample(questions, len(questions))][:count]


def _under_role_plays(
    rng: random.Random, questions: Sequence[refusal.Question], role_plays: Sequence[str]
) -> list[Row]:
    """Puts each question under a random role play, and answers it by the paper's rule."""
    return [
        {
            "instruction": refusal.random_role_play(rng, role_plays),
            **question.row(refusal.PAPER_RULE.refuses(question.kind)),
        }
        for question in questions
    ]


GENERATORS = {"arithmetic": generate_arithmetic, "sentiment": generate_sentiment, "safety": generate_safety}
