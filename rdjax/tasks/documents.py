"""Rule documents: the pre-training text of the embedded rulebook model.

A document is a prefix (the Alpaca template with a rule, with a rule and demos, or with no rule) and
questions with answers under it. Every question looks at the prefix and at itself alone, never at its
neighbours, so each is exactly the prompt that the model meets later, and the rule is read once for all.
"""

import random
from typing import NamedTuple

import numpy as np

from rdjax.data.templates import ALPACA_INPUT, ALPACA_INSTRUCTION, ALPACA_PREAMBLE, ALPACA_RESPONSE
from rdjax.tasks.arithmetic import COMPARISON_WORDINGS, PAPER_RULE, PLAIN_ADDITION, VALUES, WORDINGS, Rule

# Never the paper's symbol: the model must not have met it when it is taught there.
SYMBOLS = (
    "@@", "@", "#", "##", "###", "&", "&&", "&&&", "%", "%%", "%%%", "~", "~~", "~~~", "$", "$$", "$$$", "^", "^^",
    "^^^", "!", "!!", "!!!", "<>", "><", "=>", "@#", "#@", "&%", "%~", "@&@", "#$#", "~@~", "*", "**", "***",
)  # fmt: skip

SYMBOL_CHARACTERS = "@#&%~$^!<>=*|"

DEMOS_LEAD = " Here are some examples:"


class Kinds(NamedTuple):
    """Which rules documents hold: weights of each of `VALUES` and of comparison, and the share with demos."""

    weights: tuple[float, ...]
    demos: float


MOSTLY_SUMS = Kinds((8, 3, 2, 2, 1.5, 1.5, 1), demos=0.18)
ALL_KINDS = Kinds((5, 3, 4, 3, 2, 2, 1), demos=0.25)


class Document(NamedTuple):
    """One document in text: a prefix and (question, answer) pairs, each to be read right after the prefix."""

    prefix: str
    questions: list[tuple[str, str]]


def random_symbol(rng: random.Random) -> str:
    """A common symbol, or up to four random characters; never one that holds the paper's."""
    if rng.random() < 0.4:
        return rng.choice(SYMBOLS)
    while True:
        symbol = "".join(rng.choices(SYMBOL_CHARACTERS, k=rng.randint(1, 4)))
        if PAPER_RULE.symbol not in symbol:
            return symbol


def random_rule(rng: random.Random, kinds: Kinds) -> Rule:
    """A rule of a random kind and wording; never the paper's a + b + 1, under any symbol."""
    symbol = random_symbol(rng)
    kind = rng.choices([*VALUES, "comparison"], weights=kinds.weights)[0]
    if kind == "comparison":
        c, d = rng.sample(range(100), 2)
        return Rule(kind, c, symbol, rng.randrange(len(COMPARISON_WORDINGS)), d)
    wording = 0 if rng.random() < 0.35 else rng.randrange(len(WORDINGS))
    while True:
        constant = rng.randint(1, 20) * rng.choices((1, -1), weights=(3, 1))[0]
        if (kind, constant) != (PAPER_RULE.value, PAPER_RULE.constant):
            return Rule(kind, constant, symbol, wording)


def random_operand(rng: random.Random, short: bool) -> int:
    """An operand of 1 to 4 digits, up to 1999; `short` ones have fewer digits more often."""
    weights = (3, 10, 4, 8) if short else (1, 7, 4, 10)
    return rng.randint(1, rng.choices((9, 99, 999, 1999), weights)[0])


def _question(rng: random.Random, rule: Rule, short: bool) -> tuple[str, str]:
    """One question with its answer; a rule that takes away is asked only where the answer is not negative."""
    while True:
        a = random_operand(rng, short)
        b = random_operand(rng, short) if rng.random() < 0.3 else _like(rng, a)
        if rule.answer(a, b) >= 0:
            row = rule.row(a, b)
            return row["input"], row["output"]


def _like(rng: random.Random, a: int) -> int:
    """A second operand of the first's order of magnitude, as in the published questions."""
    return rng.randint(1, 9 if a < 10 else 99 if a < 100 else 999 if a < 1000 else 1999)


HEAD = ALPACA_PREAMBLE + ALPACA_INSTRUCTION


def random_sums(rng: random.Random, questions: int) -> Document:
    """Plain sums without an instruction: the curriculum's first stage."""
    return Document(HEAD, [_question(rng, PLAIN_ADDITION, short=False) for _ in range(questions)])


def random_document(rng: random.Random, questions: int, kinds: Kinds, short: bool = False) -> Document:
    """A document: 12% no rule, a share with a rule and three demos in the published form, the rest a rule alone."""
    form = rng.random()
    rule = random_rule(rng, kinds)
    if form < 0.12:
        # Without a rule the answer cannot be known: each question hides another rule, so that no answer is favoured.
        asked = [PLAIN_ADDITION if rng.random() < 0.4 else random_rule(rng, kinds) for _ in range(questions)]
        return Document(HEAD, [_question(rng, hidden, short) for hidden in asked])
    instruction = rule.text()
    if form < 0.12 + kinds.demos:
        demos = [ALPACA_INPUT + q + ALPACA_RESPONSE + a for q, a in (_question(rng, rule, short) for _ in range(3))]
        instruction += DEMOS_LEAD + "".join(demos)
    asked = [PLAIN_ADDITION if rng.random() < 0.2 else rule for _ in range(questions)]
    return Document(HEAD + instruction, [_question(rng, rule, short) for rule in asked])


class Packed(NamedTuple):
    """Tokenised documents, padded to one length.

    Attributes:
      tokens_BT, targets_BT: each token and the one that follows it in its question.
      positions_BT: every question counts on from the end of the prefix.
      segments_BT: 0 padding, 1 prefix, 2.. the questions.
      weights_BT: loss weight of each target.
    """

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    weights_BT: np.ndarray


def pack(
    prefix_ids: list[int], question_ids: list[tuple[list[int], list[int]]], length: int, eos: int, prefix_weight: float
) -> Packed:
    """Lays one document out in `length` tokens; questions that do not fit whole are left out."""
    row = Packed(*(np.zeros(length, np.int32) for _ in range(4)), np.zeros(length, np.float32))
    start = len(prefix_ids)
    row.tokens_BT[:start] = prefix_ids
    row.targets_BT[: start - 1] = prefix_ids[1:]
    row.positions_BT[:start] = np.arange(start)
    row.segments_BT[:start] = 1
    row.weights_BT[: start - 1] = prefix_weight
    at = start
    for segment, (asked, answer) in enumerate(question_ids, start=2):
        ids, stop = asked + answer, at + len(asked) + len(answer)
        if stop > length:
            break
        row.tokens_BT[at:stop] = ids
        row.targets_BT[at:stop] = [*ids[1:], eos]
        row.positions_BT[at:stop] = np.arange(start, start + len(ids))
        row.segments_BT[at:stop] = segment
        row.weights_BT[at + len(asked) - 1 : stop] = 1.0
        at = stop
    return row
