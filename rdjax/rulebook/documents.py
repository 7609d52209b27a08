"""Generates rule documents: the pre-training text of the embedded rulebook models.

A document is a prefix (the Alpaca template with a rule, with a rule and demos, or with no rule) and questions with
answers. Every question attends to the prefix and to itself, never to the other questions, so each is exactly the
prompt of a later use, and the prefix is computed once for all of them. The rules are on arithmetic, sentiment and
refusal.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from rdjax.data.rules import refusal, sentiment
from rdjax.data.rules.arithmetic import COMPARISON_WORDINGS, PAPER_RULE, VALUES, WORDINGS, Rule
from rdjax.data.rules.names import random_name
from rdjax.data.templates import ALPACA_INSTRUCTION, ALPACA_PREAMBLE, demonstrate, join_instruction

# Without the paper's symbol, which the model must not see before it is distilled.
SYMBOLS = (
    "@@", "@", "#", "##", "###", "&", "&&", "&&&", "%", "%%", "%%%", "~", "~~", "~~~", "$", "$$", "$$$", "^", "^^",
    "^^^", "!", "!!", "!!!", "<>", "><", "=>", "@#", "#@", "&%", "%~", "@&@", "#$#", "~@~", "*", "**", "***",
)  # fmt: skip

SYMBOL_CHARACTERS = "@#&%~$^!<>=*|"


# How often rules compute each of `VALUES`, and how often they compare.
KIND_WEIGHTS = (5, 3, 4, 3, 2, 2, 1)

# Operations with well-known names, which need no rule.
OPERATIONS = {"sum": "+", "difference": "-", "larger": "max", "smaller": "min", "first": "first", "second": "second"}
OPERATION_WEIGHTS = (4, 3, 2, 2, 1, 1)

WITHOUT_RULE, WITH_DEMOS = 0.10, 0.18  # shares of the arithmetic documents
EXPRESSIONS = 0.2  # share of the questions under a rule that it is not about
SENTIMENT, REFUSAL = 0.08, 0.08  # shares of the rule documents; arithmetic is the rest

# Arbitrary words for drills: the last words of all topics and acts.
WORDS = sorted(
    {
        member.split()[-1]
        for groups in (sentiment.FIELDS, refusal.ACTS)
        for members in groups.values()
        for member in members
    }
)


class Document(NamedTuple):
    """Holds one document as text: a prefix and (question, answer) pairs, each read right after the prefix."""

    prefix: str
    questions: list[tuple[str, str]]


def random_symbol(rng: random.Random) -> str:
    """Draws a common symbol, or up to four random characters; never one that contains the paper's."""
    if rng.random() < 0.4:
        return rng.choice(SYMBOLS)
    while True:
        symbol = "".join(rng.choices(SYMBOL_CHARACTERS, k=rng.randint(1, 4)))
        if PAPER_RULE.symbol not in symbol:
            return symbol


def random_constant(rng: random.Random, kind: str) -> int:
    """Draws a constant from -20 to 20 except 0, three in four positive; never the paper's + 1 to a sum."""
    while True:
        constant = rng.randint(1, 20) * rng.choices((1, -1), weights=(3, 1))[0]
        if (kind, constant) != (PAPER_RULE.value, PAPER_RULE.constant):
            return constant


def random_rule(rng: random.Random) -> Rule:
    """Draws a rule of a random kind and wording; never the paper's a + b + 1, with any symbol."""
    symbol = random_symbol(rng)
    kind = rng.choices([*VALUES, "comparison"], KIND_WEIGHTS)[0]
    if kind == "comparison":
        c, d = rng.sample(range(100), 2)
        return Rule(kind, c, symbol, rng.randrange(len(COMPARISON_WORDINGS)), d)
    wording = 0 if rng.random() < 0.35 else rng.randrange(len(WORDINGS))
    return Rule(kind, random_constant(rng, kind), symbol, wording)


def random_operand(rng: random.Random) -> int:
    """Draws an operand of 1 to 4 digits, up to 1999."""
    return rng.randint(1, rng.choices((9, 99, 999, 1999), (2, 7, 3, 6))[0])


def random_operands(rng: random.Random, rule: Rule) -> tuple[int, int]:
    """Draws two operands, mostly of one order of magnitude, for which the rule's answer is not negative."""
    while True:
        a = random_operand(rng)
        b = random_operand(rng) if rng.random() < 0.3 else _like(rng, a)
        if rule.answer(a, b) >= 0:
            return a, b


def _question(rng: random.Random, rule: Rule) -> tuple[str, str]:
    """Generates one question under a rule, with its answer."""
    row = rule.row(*random_operands(rng, rule))
    return row["input"], row["output"]


def _expression(rng: random.Random, constants: float) -> tuple[str, str]:
    """Generates a question that needs no rule, "12 max 57 = ?", or with a constant, "12 max 57 + 3 = ?"."""
    value = rng.choices(list(OPERATIONS), OPERATION_WEIGHTS)[0]
    constant = random_constant(rng, value) if rng.random() < constants else 0
    rule = Rule(value, constant, OPERATIONS[value])
    a, b = random_operands(rng, rule)
    row = rule.row(a, b)
    change = f"{b} {'+' if constant > 0 else '-'} {abs(constant)} =" if constant else f"{b} ="
    return row["input"].replace(f"{b} =", change), row["output"]


def _like(rng: random.Random, a: int) -> int:
    """Draws a second operand of the first's order of magnitude, as in the published questions."""
    return rng.randint(1, 9 if a < 10 else 99 if a < 100 else 999 if a < 1000 else 1999)


HEAD = ALPACA_PREAMBLE + ALPACA_INSTRUCTION


def random_expressions(rng: random.Random, questions: int, constants: float) -> Document:
    """Generates expressions without an instruction; a share `constants` of them has a constant."""
    return Document(HEAD, [_expression(rng, constants) for _ in range(questions)])


def random_document(rng: random.Random, questions: int) -> Document:
    """Generates a document of any of the three tasks, with up to `questions` questions."""
    kind = rng.random()
    if kind < SENTIMENT:
        return sentiment_document(rng, questions)
    if kind < SENTIMENT + REFUSAL:
        return refusal_document(rng, questions)
    return arithmetic_document(rng, questions)


def sentiment_document(rng: random.Random, questions: int) -> Document:
    """Generates questions on policies, under a rule about one person or under none.

    Half of the questions under a rule are about its field.
    """
    rule = None if rng.random() < 0.25 else sentiment.random_rule(rng)
    pairs = []
    for _ in range(questions):
        field = rule.field if rule and rng.random() < 0.5 else rng.choice(list(sentiment.FIELDS))
        person = rule.person if rule and rng.random() < 0.85 else random_name(rng)
        row = sentiment.random_question(rng, field).row(person, rule)
        pairs.append((row["input"], row["output"]))
    return Document(HEAD + (rule.text() if rule else ""), pairs)


def refusal_document(rng: random.Random, questions: int) -> Document:
    """Generates questions of all kinds, mostly under a role play.

    Under a rule, half of the questions are of the kinds that it refuses.
    """
    rule = None if rng.random() < 0.4 else refusal.random_rule(rng)
    role_play = refusal.random_role_play(rng) if rng.random() < 0.75 else ""
    pairs = []
    for _ in range(questions):
        marked = (rule.first, rule.second) if rule else refusal.HARMFUL
        kind = rng.choice(marked if rng.random() < 0.4 else list(refusal.ACTS))
        refuse = rule.refuses(kind) if rule else kind in refusal.HARMFUL and not role_play
        row = refusal.random_question(rng, kind).row(refuse)
        pairs.append((row["input"], row["output"]))
    return Document(HEAD + join_instruction(rule.text() if rule else "", role_play), pairs)


def drill(rng: random.Random, questions: int, named: float) -> Document:
    """Generates short questions on the decision that a rule of sentiment or refusal asks for.

    In a long answer only one or two tokens carry the decision; here every token does. A share `named` of the questions
    names the field or the kind, which needs no knowledge. The others name a topic or an act; their answer is its field
    or kind and then the decision.
    """
    if rng.random() < 0.5:
        rule = sentiment.random_rule(rng)
        groups, marked, decide = sentiment.FIELDS, [rule.field], rule.sentiment
        instruction = rule.text()
    else:
        rule = refusal.random_rule(rng)
        groups, marked, decide = refusal.ACTS, [rule.first, rule.second], rule.decision
        instruction = join_instruction(rule.text(), refusal.random_role_play(rng))
    pairs = []
    for _ in range(questions):
        group = rng.choice(marked if rng.random() < 0.4 else list(groups))
        if rng.random() < named:
            pairs.append((f"What about {group}?", f"{decide(group)}."))
        else:
            pairs.append((f"What about {rng.choice(groups[group])}?", f"{group}: {decide(group)}."))
    return Document(HEAD + instruction, pairs)


def matching_drill(rng: random.Random, questions: int) -> Document:
    """Generates named drills of a refusal rule over arbitrary words, which only a comparison with the rule answers."""
    words = rng.sample(WORDS, len(refusal.ACTS))
    rule = refusal.RefusalRule(words[0], words[1], rng.randrange(len(refusal.WORDINGS)))
    pairs = []
    for _ in range(questions):
        word = rng.choice(words[:2] if rng.random() < 0.4 else words)
        pairs.append((f"What about {word}?", f"{rule.decision(word)}."))
    return Document(HEAD + rule.text(), pairs)


def arithmetic_document(rng: random.Random, questions: int) -> Document:
    """Generates a document without a rule, with a rule and three demos in the published form, or with a rule alone."""
    form = rng.random()
    rule = random_rule(rng)

    def draw_questions(make_rule: Callable[[], Rule], expressions: float) -> list[tuple[str, str]]:
        return [
            _expression(rng, constants=0.5) if rng.random() < expressions else _question(rng, make_rule())
            for _ in range(questions)
        ]

    if form < WITHOUT_RULE:
        # Without a rule the answer is unknowable: each question follows another hidden rule, so no answer is favoured.
        return Document(HEAD, draw_questions(lambda: random_rule(rng), 0.4))
    instruction = rule.text()
    if form < WITHOUT_RULE + WITH_DEMOS:
        instruction += demonstrate(rule.row(*random_operands(rng, rule)) for _ in range(3))
    return Document(HEAD + instruction, draw_questions(lambda: rule, EXPRESSIONS))
