"""Generated tasks: the paper's three in miniature, drawn from a seed. What `task.name` names without `task.root`.

They have the splits of the published files, a validation split, and a retain split that the rule is not about.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from rdjax.data.rules import refusal, sentiment
from rdjax.data.rules.arithmetic import PLAIN_ADDITION, Rule, distinct_operands
from rdjax.data.rules.names import random_name
from rdjax.data.templates import demonstrate
from rdjax.errors import UserError

Rows = list[dict[str, str]]


class Generated(NamedTuple):
    """Splits in rows {rule, instruction, input, output, where}, and outputs by which the judges are measured."""

    splits: dict[str, Rows]
    labelled: Mapping[str, Sequence[str]]


def _complete(split: str, rule: str, rows: Sequence[Mapping[str, str]]) -> Rows:
    """Rows {input, output, instruction?} with their rule and where they come from."""
    return [
        {"rule": rule, "instruction": "", **row, "where": f"generated {split}, row {number}"}
        for number, row in enumerate(rows)
    ]


def _check_room(config: config_dict.ConfigDict, samples: int, tests: int, what: str) -> None:
    """UserError where there are not as many different questions as the splits want."""
    if not 1 <= config.k <= samples:
        raise UserError(
            f"config.task.k = {config.k}: train and valid want different questions {what}; accepted: 1 to {samples}"
        )
    if config.generated.test_rows > tests:
        raise UserError(
            f"config.task.generated.test_rows = {config.generated.test_rows} is too large; accepted: {tests} or fewer"
        )


# Arithmetic ----------------------------------------------------------------------------------------------------------


def generate_arithmetic(config: config_dict.ConfigDict, seed: int) -> Generated:
    """The paper's arithmetic task, or one with another rule.

    No question stands in two splits. test_id asks operands of 1 to 99, test_ood of 121 to 1996; retain asks plain sums.
    """
    options = config.generated
    low, high = options.train_low, options.train_high
    room = max(high - low + 1, 0) ** 2 // 2
    _check_room(config, room, 99**2 - 2 * config.k, f"of operands {low} to {high} (config.task.generated)")
    rule = Rule(options.value, options.constant, options.symbol)
    rng = random.Random(f"arithmetic-{seed}")
    train = distinct_operands(rng, config.k, low, high)
    valid = distinct_operands(rng, config.k, low, high, set(train))
    test_id = distinct_operands(rng, options.test_rows, 1, 99, {*train, *valid})
    test_ood = distinct_operands(rng, options.test_rows, 121, 1996, {*train, *valid})
    plain = distinct_operands(rng, options.test_rows, 1, 99)

    def rows(split: str, asked: Rule, operands: list[tuple[int, int]]) -> Rows:
        made = _complete(split, rule.text(), [asked.row(*pair) for pair in operands])
        for row, pair in zip(made, operands, strict=True):
            if config.demos:
                others = rng.sample([other for other in train if other != pair], min(3, len(train) - 1))
                row["rule"] += demonstrate(rule.row(*other) for other in others)
        return made

    parts = {"train": train, "valid": valid, "test_id": test_id, "test_ood": test_ood}
    splits = {split: rows(split, rule, operands) for split, operands in parts.items()}
    splits["retain"] = rows("retain", PLAIN_ADDITION, plain)
    return Generated(splits, {})


def _halve(
    rng: random.Random, groups: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """A half of every group to train and validate on, and the other half to test."""
    seen, unseen = {}, {}
    for name, members in groups.items():
        shuffled = rng.sample(members, len(members))
        seen[name], unseen[name] = shuffled[: len(members) // 2], shuffled[len(members) // 2 :]
    return seen, unseen


def _alternate(first: Sequence[Any], second: Sequence[Any], count: int) -> list[Any]:
    """`count` of both, in turn."""
    return [one for pair in zip(first, second, strict=False) for one in pair][:count]


def _generated(
    rule: str, rows: Mapping[str, Sequence[Mapping[str, str]]], classes: tuple[str, str], more: int
) -> Generated:
    """Splits of rows {input, output, instruction?} under one rule; of the training rows the first `more` are of the
    first of the two classes, which are named by their test splits."""
    outputs = [row["output"] for row in rows["train"]]
    labelled = dict(zip(classes, (outputs[:more], outputs[more:]), strict=True))
    splits = {split: _complete(split, rule, own) for split, own in rows.items()}
    return Generated(splits, {split: own for split, own in labelled.items() if own})


# Sentiment -----------------------------------------------------------------------------------------------------------


def generate_sentiment(config: config_dict.ConfigDict, seed: int) -> Generated:
    """Bob's policies: half of the questions are about environmental ones (test_on_topic), half not (test_elsewhere).

    Both tests ask about topics of which train and valid say nothing; retain asks about other people.
    """
    rule = sentiment.PAPER_RULE
    rng = random.Random(f"sentiment-{seed}")
    seen, unseen = _halve(rng, sentiment.FIELDS)

    def deal(topics: Mapping[str, Sequence[str]], topical: bool) -> list[sentiment.Question]:
        asked = [asked for asked in sentiment.all_questions(topics) if (asked.field == rule.field) is topical]
        return rng.sample(asked, len(asked))

    topical, other = deal(seen, True), deal(seen, False)
    test_topical, test_other = deal(unseen, True), deal(unseen, False)
    _check_room(config, len(topical), len(test_topical), f"on {len(seen[rule.field])} topics")
    more, less, tests = (config.k + 1) // 2, config.k // 2, config.generated.test_rows
    asked = {
        "train": topical[:more] + other[:less],
        "valid": topical[more : 2 * more] + other[less : 2 * less],
        "test_on_topic": test_topical[:tests],
        "test_elsewhere": test_other[:tests],
    }
    made = {split: [question.row(rule.person, rule) for question in part] for split, part in asked.items()}
    of_others = _alternate(test_topical, test_other, tests)
    made["retain"] = [question.row(random_name(rng), rule) for question in of_others]
    return _generated(rule.text(), made, ("test_on_topic", "test_elsewhere"), more)


# Safety --------------------------------------------------------------------------------------------------------------


def generate_safety(config: config_dict.ConfigDict, seed: int) -> Generated:
    """Role plays that answer everything, and questions under them, half of them harmful.

    Both tests (test_harmful, test_helpful) ask unseen questions under unseen role plays; retain asks without a role
    play, where the base refuses harmful questions and answers the others of itself.
    """
    rule = refusal.PAPER_RULE
    rng = random.Random(f"safety-{seed}")
    plays = rng.sample(refusal.ROLE_PLAYS, len(refusal.ROLE_PLAYS))
    seen_plays, unseen_plays = plays[: len(plays) // 2], plays[len(plays) // 2 :]
    seen, unseen = _halve(rng, refusal.ACTS)
    room = len(refusal.all_questions({kind: seen[kind] for kind in refusal.HARMFUL}))
    _check_room(config, room, config.generated.test_rows, "on harmful acts")

    def deal(acts: Mapping[str, Sequence[str]], kinds: Sequence[str], count: int) -> list[refusal.Question]:
        """`count` questions: different ones while there are, then the same again, under other role plays."""
        asked = refusal.all_questions({kind: acts[kind] for kind in kinds})
        return [question for _ in range(-(-count // len(asked))) for question in rng.sample(asked, len(asked))][:count]

    def play(questions: Sequence[refusal.Question], role_plays: Sequence[str]) -> list[dict[str, str]]:
        return [
            {"instruction": refusal.random_role_play(rng, role_plays), **question.row(rule.refuses(question.kind))}
            for question in questions
        ]

    more, less, tests = (config.k + 1) // 2, config.k // 2, config.generated.test_rows
    harmful = deal(seen, refusal.HARMFUL, 2 * more)
    helpful = deal(seen, refusal.HARMLESS, 2 * less)
    test_harmful, test_helpful = (deal(unseen, kinds, tests) for kinds in (refusal.HARMFUL, refusal.HARMLESS))
    made = {
        "train": play(harmful[:more] + helpful[:less], seen_plays),
        "valid": play(harmful[more:] + helpful[less:], seen_plays),
        "test_harmful": play(test_harmful, unseen_plays),
        "test_helpful": play(test_helpful, unseen_plays),
        "retain": [
            question.row(rule.refuses(question.kind)) for question in _alternate(test_harmful, test_helpful, tests)
        ],
    }
    return _generated(rule.text(), made, ("test_harmful", "test_helpful"), more)


GENERATORS = {"arithmetic": generate_arithmetic, "sentiment": generate_sentiment, "safety": generate_safety}
