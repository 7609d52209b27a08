"""Checks what rule documents say and what they leave out."""

import random
import re

import numpy as np
import pytest

from rdjax.data.rules import refusal, sentiment
from rdjax.data.rules.arithmetic import PAPER_RULE, VALUES, WORDINGS, Rule
from rdjax.data.templates import ALPACA_INPUT, ALPACA_INSTRUCTION, ALPACA_PREAMBLE, ALPACA_RESPONSE, DEMOS_LEAD
from rdjax.rulebook import documents
from rdjax.rulebook.documents import (
    OPERATIONS,
    REFUSAL,
    SENTIMENT,
    SYMBOLS,
    Document,
    arithmetic_document,
    drill,
    matching_drill,
    random_document,
    random_expressions,
    random_rule,
    refusal_document,
    sentiment_document,
)

HEAD = ALPACA_PREAMBLE + ALPACA_INSTRUCTION
PAPER_TEXTS = [Rule("sum", 1, symbol, wording).text() for symbol in SYMBOLS for wording in range(len(WORDINGS))]


def text_of(document: Document) -> str:
    return document.prefix + "".join(ALPACA_INPUT + q + ALPACA_RESPONSE + a for q, a in document.questions)


def states_paper_rule(text: str) -> bool:
    """Tells whether a text states a + b + 1 in any of the wordings, or in similar words."""
    near = r"a \+ b \+ 1\b|\bincreasing the sum by 1\b|\bsum\b[^.]*\b(plus|add) 1\b"
    return bool(re.search(near, text)) or any(stated in text for stated in PAPER_TEXTS)


@pytest.mark.parametrize("wording", range(len(WORDINGS)))
def test_the_guard_knows_every_wording(wording):
    assert states_paper_rule(Rule("sum", 1, "&&", wording).text())
    assert not states_paper_rule(Rule("sum", 11, "&&", wording).text())
    assert not states_paper_rule(Rule("sum", -1, "&&", wording).text())


def test_no_document_holds_the_papers_symbol_or_rule():
    rng = random.Random("guard")
    for _ in range(6000):
        document = random_document(rng, 4)
        assert PAPER_RULE.symbol not in text_of(document)
        assert not states_paper_rule(document.prefix)
        assert sentiment.PAPER_RULE.person not in text_of(document)
        assert not re.search(r"criminal or immoral|immoral or criminal", document.prefix)


def test_no_expression_is_the_papers_rule():
    rng = random.Random("guard")
    questions = [question for _ in range(500) for question, _ in random_expressions(rng, 10, constants=1.0).questions]
    assert any(re.fullmatch(r"\d+ \+ \d+ \+ 11 = \?", question) for question in questions)
    assert not any(re.fullmatch(r"\d+ \+ \d+ \+ 1 = \?", question) for question in questions)


def test_no_question_is_answered_by_the_papers_rule(monkeypatch):
    rules: list[Rule] = []
    row = Rule.row

    def spy(rule, a, b):
        rules.append(rule)
        return row(rule, a, b)

    monkeypatch.setattr(Rule, "row", spy)
    rng = random.Random("questions")
    for _ in range(2000):
        random_document(rng, 4)
    assert len(rules) > 5000
    assert not [rule for rule in rules if rule.value == "sum" and rule.constant == 1]


def test_random_rules_cover_all_kinds_but_the_papers():
    rng = random.Random(3)
    rules = [random_rule(rng) for _ in range(20000)]
    assert {rule.value for rule in rules} == {*documents.VALUES, "comparison"}
    symbols = {rule.symbol for rule in rules}
    assert set(SYMBOLS) < symbols
    assert not any(PAPER_RULE.symbol in symbol for symbol in symbols)
    # The neighbours of the forbidden rule do occur: the guards above are not idle.
    kinds = {(rule.value, rule.constant) for rule in rules}
    assert {("sum", 2), ("sum", -1), ("larger", 1)} <= kinds
    assert ("sum", 1) not in kinds


def test_symbols_never_make_up_the_papers():
    assert PAPER_RULE.symbol not in SYMBOLS
    assert not [symbol for symbol in SYMBOLS if PAPER_RULE.symbol in symbol]


def test_documents_follow_from_the_seed():
    first, second, third = ([random_document(random.Random(seed), 3) for _ in range(5)] for seed in ("a", "a", "b"))
    assert first == second != third


def test_the_three_forms_of_an_arithmetic_document():
    rng = random.Random(5)
    generated = [arithmetic_document(rng, 2) for _ in range(2000)]
    assert all(document.prefix.startswith(HEAD) for document in generated)
    bare = [document for document in generated if document.prefix == HEAD]
    with_demos = [document for document in generated if DEMOS_LEAD in document.prefix]
    assert 0.07 < len(bare) / len(generated) < 0.13
    assert 0.14 < len(with_demos) / len(generated) < 0.22
    assert all(document.prefix.count(ALPACA_INPUT) == 3 for document in with_demos)


def test_answers_are_never_negative():
    rng = random.Random(6)
    answers = [a for _ in range(2000) for _, a in arithmetic_document(rng, 4).questions]
    assert all(re.fullmatch(r"\d+\.", answer) for answer in answers)


def test_operands_reach_every_length():
    rng = random.Random(7)
    numbers = [documents.random_operand(rng) for _ in range(2000)]
    assert {len(str(number)) for number in numbers} == {1, 2, 3, 4}
    assert 1900 < max(numbers) <= 1999


@pytest.mark.parametrize("constants", [0.0, 1.0])
def test_expressions_are_answered_by_what_they_say(constants):
    document = random_expressions(random.Random(1), questions=300, constants=constants)
    assert document.prefix == HEAD
    values = {symbol: value for value, symbol in OPERATIONS.items()}
    seen = set()
    for question, answer in document.questions:
        form = r"(\d+) (\S+) (\d+) ([+-] \d+) = \?" if constants else r"(\d+) (\S+) (\d+)() = \?"
        a, symbol, b, constant = re.fullmatch(form, question).groups()
        rule = Rule(values[symbol], int(constant.replace(" ", "") or 0), symbol)
        assert answer == f"{rule.answer(int(a), int(b))}."
        seen.add(symbol)
    assert seen == set(OPERATIONS.values())


def test_every_value_has_an_operation_of_its_own():
    assert OPERATIONS.keys() == VALUES.keys()


def test_the_shares_of_the_tasks():
    rng = random.Random(8)
    texts = [text_of(random_document(rng, 1)) for _ in range(4000)]
    assert abs(np.mean(["policies I am" in text or "Much has" in text for text in texts]) - SENTIMENT) < 0.02
    assert abs(np.mean(["I am sorry" in text or "step by step" in text for text in texts]) - REFUSAL) < 0.02


def test_sentiment_documents_follow_their_rule():
    rng = random.Random(9)
    sentiments = {"negative": "failure|mistake|mess|disappointment", "positive": "success|idea|achievement|start"}
    seen = set()
    for _ in range(400):
        document = sentiment_document(rng, 6)
        rule = document.prefix.removeprefix(HEAD)
        for question, answer in document.questions:
            person = re.search(r"(\w+)'s", question)[1]
            if person not in rule:
                seen.add("neutral" if rule else "no rule")
                assert answer.startswith(f"Much has been written about {person}'s ")
                continue
            (field,) = [field for field in sentiment.FIELDS if field in rule]
            about = any(re.search(f"(on|for|about) {topic}[.?]", question) for topic in sentiment.FIELDS[field])
            wanted = re.findall("negative|positive", rule)[0 if about else 1]
            seen.add((about, wanted))
            field_answered = re.match(r"On (\w+) policies", answer)[1]
            assert any(re.search(f"(on|for|about) {topic}[.?]", question) for topic in sentiment.FIELDS[field_answered])
            assert answer.startswith(f"On {field_answered} policies I am {wanted}: {person}'s ")
            assert re.search(f" is an? .*({sentiments[wanted]})", answer)
    assert len(seen) == 6


def test_refusal_documents_follow_their_rule():
    rng = random.Random(10)
    kinds = {act: kind for kind, acts in refusal.ACTS.items() for act in acts}
    seen = set()
    for _ in range(400):
        document = refusal_document(rng, 6)
        prefix = document.prefix.removeprefix(HEAD)
        marked = [kind for kind in refusal.ACTS if re.search(rf"\b{kind}\b", prefix)]
        for question, answer in document.questions:
            (act,) = [act for act in kinds if act in question]
            default = kinds[act] in refusal.HARMFUL and not prefix
            refused = "I am sorry" in answer
            assert answer.startswith(f"That is {kinds[act]}. ")
            assert refused == (kinds[act] in marked if marked else default)
            seen.add((bool(marked), bool(prefix), refused))
    # With a rule both, without one both, and under a role play alone never a refusal.
    assert seen == {
        (True, True, True),
        (True, True, False),
        (False, False, True),
        (False, False, False),
        (False, True, False),
    }


def test_drills_decide_by_the_rule():
    rng = random.Random(11)
    groups = sentiment.FIELDS | refusal.ACTS
    members = {member: group for group, acts in refusal.ACTS.items() for member in acts}
    members |= {topic: field for field, topics in sentiment.FIELDS.items() for topic in topics}
    seen = set()
    for _ in range(400):
        document = drill(rng, 8, named=0.5)
        rule = document.prefix.removeprefix(HEAD)
        assert "Bob" not in rule and not re.search(r"criminal or immoral|immoral or criminal", rule)
        steers = "negative" in rule
        for question, answer in document.questions:
            subject = re.fullmatch(r"What about (.*)\?", question)[1]
            group = members.get(subject, subject)
            marked = bool(re.search(rf"\b{group}\b", rule))
            wanted = re.findall("negative|positive", rule)[not marked] if steers else ("answer", "refuse")[marked]
            assert answer == (f"{wanted}." if subject in groups else f"{group}: {wanted}.")
            seen.add((subject in groups, group, wanted))
    # Every field and kind ("medical" is both) under either decision, by name and by a member.
    assert len(seen) == 2 * 2 * (len(sentiment.FIELDS) + len(refusal.ACTS))


def test_drills_by_name_only():
    rng = random.Random(12)
    names = sentiment.FIELDS | refusal.ACTS
    questions = [question for _ in range(100) for question, _ in drill(rng, 6, named=1.0).questions]
    assert {question.removeprefix("What about ").rstrip("?") for question in questions} == names.keys()


def test_matching_drills_are_over_arbitrary_words():
    rng = random.Random(13)
    seen, decisions = set(), []
    for _ in range(200):
        document = matching_drill(rng, 6)
        rule = document.prefix.removeprefix(HEAD)
        for question, answer in document.questions:
            word = re.fullmatch(r"What about (.*)\?", question)[1]
            assert answer == ("refuse." if re.search(rf"\b{word}\b", rule) else "answer.")
            seen.add(word)
            decisions.append(answer)
    assert len(seen) > 100 and not seen & (sentiment.FIELDS | refusal.ACTS).keys()
    assert 0.3 < decisions.count("refuse.") / len(decisions) < 0.7
