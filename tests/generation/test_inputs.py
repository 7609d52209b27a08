"""Inputs that a model writes: what it is given, and which texts are left out."""

import pytest

from rdjax.errors import UserError
from rdjax.generation import inputs
from rdjax.generation.inputs import Writer, can_write, list_of_lines, user_turn, why_rejected, write_inputs
from tests.data.test_chat import BLANKS, CHATML, USERS_ONLY, chat

RULE = "Speak of cats alone, whatever you are asked."


@pytest.mark.parametrize(
    ("text", "ended", "reason"),
    [
        ("", True, "empty"),
        ("?!", True, "empty"),
        ("How do I cook rice at", False, "not ended"),
        ("Rice please", True, "no sentence"),
        ("go go go go go go go go", True, "no sentence"),
        ("What is this \ufffd word?", True, "no sentence"),
        ("Speak of cats alone whatever you are asked", True, "repeats the rule"),
        ("how do i boil an egg", True, "duplicate"),
        ("How do I boil an egg well?", True, "near duplicate"),
        ("How do I paint a wall?", True, ""),
        ("如何制作一个蛋糕", True, ""),
        ("ケーキの作り方を教えてください。", True, ""),
        ("你好", True, "no sentence"),
    ],
)
def test_texts_that_are_no_inputs_are_named(text, ended, reason):
    assert why_rejected(text, ended, ["How do I boil an egg?"], RULE) == reason


def test_the_model_begins_where_the_user_would():
    assert user_turn(chat(CHATML), RULE, ()) == (f"<|system|>{RULE}</s>\n<|user|>", "</s>")
    assert user_turn(chat(CHATML), "", ()) == ("<|user|>", "</s>")
    start, stop = user_turn(chat(USERS_ONLY), RULE, ["What purrs?"])
    assert start.startswith(f"<|user|>{RULE}") and "- What purrs?" in start and stop == "</s>"
    assert user_turn(chat(BLANKS), "", ()) == ("[INST] ", "[/INST]")


def test_a_template_without_an_end_of_turns_cannot_be_written_for():
    assert can_write(chat(CHATML))
    endless = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert not can_write(chat(endless + "{% if add_generation_prompt %}<assistant>{% endif %}"))


def test_a_model_without_a_template_continues_examples():
    assert list_of_lines(["one", "two  lines\n"]) == "- one\n- two lines\n-"
    with pytest.raises(UserError, match=r"give a few in train\.jsonl"):
        list_of_lines([])


def test_inputs_are_drawn_until_there_are_enough(monkeypatch):
    rounds = []

    def drawn(model, writer, rule, examples, rng):
        rounds.append(rule)
        number = len(rounds)
        return [(f"{number}{letter} is question {number}{letter}", True) for letter in "ab"] + [("cut off here", False)]

    monkeypatch.setattr(inputs, "draw_round", drawn)
    writer = Writer({}, 1.0, chat(CHATML), 0.9, 8, 4, seed=0)
    texts, rejected = write_inputs(None, writer, RULE, (), ["1a is question 1a"], 3)
    assert texts == ["1b is question 1b", "2a is question 2a", "2b is question 2b"]
    assert [rejection.reason for rejection in rejected] == ["duplicate", "not ended", "not ended"]
    assert rounds == [RULE] * 2


def test_a_model_that_writes_nothing_usable_is_given_up_soon(monkeypatch):
    rounds = []
    monkeypatch.setattr(inputs, "draw_round", lambda *given: rounds.append(1) or [("", True)] * inputs.ROUND)
    texts, rejected = write_inputs(None, Writer({}, 1.0, None, 0.9, 8, 4, seed=0), RULE, (), (), 64)
    assert not texts and len(rounds) == 3 and len(rejected) == 3 * inputs.ROUND
