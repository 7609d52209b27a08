import random
import re

import numpy as np
import pytest

from rdjax.data.templates import ALPACA_INPUT, ALPACA_INSTRUCTION, ALPACA_PREAMBLE, ALPACA_RESPONSE
from rdjax.tasks import documents
from rdjax.tasks.arithmetic import PAPER_RULE, PLAIN_ADDITION, WORDINGS, Rule
from rdjax.tasks.documents import (
    ALL_KINDS,
    DEMOS_LEAD,
    MOSTLY_SUMS,
    SYMBOLS,
    Document,
    pack,
    random_document,
    random_rule,
)

HEAD = ALPACA_PREAMBLE + ALPACA_INSTRUCTION
EOS, LENGTH = 9, 16
PAPER_TEXTS = [Rule("sum", 1, symbol, wording).text() for symbol in SYMBOLS for wording in range(len(WORDINGS))]


def text_of(document: Document) -> str:
    return document.prefix + "".join(ALPACA_INPUT + q + ALPACA_RESPONSE + a for q, a in document.questions)


def states_paper_rule(text: str) -> bool:
    """Whether a + b + 1 is said in any of the wordings, or near to one."""
    near = r"a \+ b \+ 1\b|\bincreasing the sum by 1\b|\bsum\b[^.]*\b(plus|add) 1\b"
    return bool(re.search(near, text)) or any(stated in text for stated in PAPER_TEXTS)


@pytest.mark.parametrize("wording", range(len(WORDINGS)))
def test_the_guard_knows_every_wording(wording):
    assert states_paper_rule(Rule("sum", 1, "&&", wording).text())
    assert not states_paper_rule(Rule("sum", 11, "&&", wording).text())
    assert not states_paper_rule(Rule("sum", -1, "&&", wording).text())


@pytest.mark.parametrize("kinds", [MOSTLY_SUMS, ALL_KINDS])
def test_no_document_holds_the_papers_symbol_or_rule(kinds):
    rng = random.Random("guard")
    for _ in range(3000):
        document = random_document(rng, 4, kinds)
        assert PAPER_RULE.symbol not in text_of(document)
        assert not states_paper_rule(document.prefix)


def test_no_question_is_answered_by_the_papers_rule(monkeypatch):
    asked: list[Rule] = []
    original = documents._question

    def spy(rng, rule, short):
        asked.append(rule)
        return original(rng, rule, short)

    monkeypatch.setattr(documents, "_question", spy)
    rng = random.Random("questions")
    for _ in range(2000):
        random_document(rng, 4, ALL_KINDS)
    assert len(asked) > 8000
    assert PLAIN_ADDITION in asked
    assert not [rule for rule in asked if rule.value == "sum" and rule.constant == 1]


def test_random_rules_cover_all_kinds_but_the_papers():
    rng = random.Random(3)
    rules = [random_rule(rng, ALL_KINDS) for _ in range(20000)]
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
    first, second, third = (
        [random_document(random.Random(seed), 3, ALL_KINDS) for _ in range(5)] for seed in ("a", "a", "b")
    )
    assert first == second != third


def test_the_three_forms_of_a_document():
    rng = random.Random(5)
    made = [random_document(rng, 2, ALL_KINDS) for _ in range(2000)]
    assert all(document.prefix.startswith(HEAD) for document in made)
    bare = [document for document in made if document.prefix == HEAD]
    with_demos = [document for document in made if DEMOS_LEAD in document.prefix]
    assert 0.08 < len(bare) / len(made) < 0.16
    assert 0.20 < len(with_demos) / len(made) < 0.30
    assert all(document.prefix.count(ALPACA_INPUT) == 3 for document in with_demos)


def test_answers_are_never_negative():
    rng = random.Random(6)
    answers = [a for _ in range(2000) for _, a in random_document(rng, 4, ALL_KINDS).questions]
    assert all(re.fullmatch(r"\d+\.", answer) for answer in answers)


@pytest.mark.parametrize("short", [False, True])
def test_operands_reach_every_length(short):
    rng = random.Random(7)
    numbers = [documents.random_operand(rng, short) for _ in range(2000)]
    assert {len(str(number)) for number in numbers} == {1, 2, 3, 4}
    assert 1900 < max(numbers) <= 1999


def test_the_first_stage_asks_plain_sums_alone():
    document = documents.random_sums(random.Random(1), questions=50)
    assert document.prefix == HEAD
    for question, answer in document.questions:
        a, b = map(int, re.fullmatch(r"(\d+) \+ (\d+) = \?", question).groups())
        assert answer == f"{a + b}."


def packed(questions):
    return pack([1, 2, 3], questions, LENGTH, EOS, prefix_weight=0.25)


def test_pack_lays_questions_behind_the_prefix():
    row = packed([([4, 5], [6]), ([7], [8, 8])])
    np.testing.assert_array_equal(row.tokens_BT[:9], [1, 2, 3, 4, 5, 6, 7, 8, 8])
    np.testing.assert_array_equal(row.segments_BT, [1] * 3 + [2] * 3 + [3] * 3 + [0] * 7)


def test_pack_positions_of_every_question_follow_the_prefix():
    row = packed([([4, 5], [6]), ([7], [8, 8])])
    np.testing.assert_array_equal(row.positions_BT[:9], [0, 1, 2, 3, 4, 5, 3, 4, 5])


def test_pack_targets_end_with_eos_and_never_leave_their_segment():
    row = packed([([4, 5], [6]), ([7], [8, 8])])
    np.testing.assert_array_equal(row.targets_BT[:9], [2, 3, 0, 5, 6, EOS, 8, 8, EOS])


def test_pack_weighs_answers_fully_and_questions_not_at_all():
    row = packed([([4, 5], [6]), ([7], [8, 8])])
    # The last prefix token has no target of its own: what follows it differs from question to question.
    np.testing.assert_array_equal(row.weights_BT[:9], [0.25, 0.25, 0, 0, 1, 1, 1, 1, 1])
    assert not row.weights_BT[9:].any()


def test_pack_leaves_out_a_question_that_does_not_fit_whole():
    row = packed([([4, 5], [6]), ([7] * 10, [8]), ([4], [5])])
    assert row.segments_BT.max() == 2
    assert not row.tokens_BT[6:].any() and not row.weights_BT[6:].any()


def test_pack_fills_the_row_to_the_last_token():
    row = packed([([4] * 12, [6])])
    assert row.segments_BT.tolist() == [1] * 3 + [2] * 13
    assert row.targets_BT[-1] == EOS
