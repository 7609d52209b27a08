"""Checks how the tokens of an answer become its text."""

import types

import pytest

from rdjax.data.pairs import make_template
from rdjax.evaluation import answers
from rdjax.evaluation.answers import EvalOptions, System, answer
from rdjax.generation.options import Decoding
from tests.data.test_chat import BLANKS
from tests.data.test_pairs import byte_tokenizer


@pytest.mark.parametrize(("written", "text"), [(" Why ", "Why"), ("  Why", " Why"), ("Why", "Why")])
def test_blanks_that_the_chat_template_writes_around_an_answer_are_not_judged(written, text, monkeypatch):
    tokenizer = byte_tokenizer(BLANKS)
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(answers, "generate", lambda *arguments: [(ids, True)])
    options = EvalOptions(make_template("chat", tokenizer), 64, Decoding(8), 1, 1.0)
    (answered,) = answer(types.SimpleNamespace(tokenizer=tokenizer), System(None, False), [], options)
    assert answered.text == text
    assert answered.ids == ids
