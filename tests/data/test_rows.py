"""Rows of a user's own files: chats, and fields that are not understood."""

import json

import pytest

from rdjax.data.rows import check_sample, read_json_lines
from rdjax.errors import UserError

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def test_a_chat_is_an_input_and_its_answer():
    row = check_sample({"messages": [ASKED, ANSWERED]}, "here")
    assert row == {"instruction": "", "input": "Hi", "output": "Hello", "history": ""}
    assert check_sample({"messages": [ASKED]}, "here")["output"] == ""


def test_what_stands_before_the_input_is_its_history():
    row = check_sample({"messages": [SYSTEM, ASKED, ANSWERED, {"role": "user", "content": "Bye"}]}, "here")
    assert (row["input"], row["output"]) == ("Bye", "")
    assert json.loads(row["history"]) == [SYSTEM, ASKED, ANSWERED]


def test_a_content_of_parts_of_text_is_their_text():
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert check_sample({"messages": [{"role": "user", "content": parts}]}, "here")["input"] == "Hi"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "a", "answer": "b"}, "not understood: answer; accepted: instruction, input, output"),
        ({"input": "a", "system": "b", "history": [["c", "d"]]}, "not understood: system, history"),
        ({"messages": [ASKED], "output": "a"}, "not understood: output; accepted: messages"),
        ({"messages": []}, "must end with a user's message"),
        ({"messages": [ANSWERED]}, "must end with a user's message"),
        ({"messages": [SYSTEM]}, "must end with a user's message"),
        ({"messages": [ASKED, ANSWERED, ANSWERED]}, "must end with a user's message"),
        ({"messages": "Hi"}, "messages must be a list"),
        ({"messages": ["Hi"]}, "messages must be a list"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role 'tool'; accepted: system, user, assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content of a message must be a string"),
        ({"messages": [ASKED, ANSWERED | {"tool_calls": [1]}]}, "messages has tool_calls, which is not understood"),
        ({"messages": [ASKED, ANSWERED | {"weight": 0}]}, "messages has weight, which is not understood"),
    ],
)
def test_what_is_not_understood_is_named(row, message):
    with pytest.raises(UserError, match=f"^here: .*{message}"):
        check_sample(row, "here")


@pytest.mark.parametrize("empty", [None, [], {}])
def test_an_empty_history_is_none(empty):
    assert check_sample({"input": "x", "history": empty}, "t.jsonl, line 1")["history"] == ""


def test_empty_fields_are_no_fields():
    row = {"input": "a", "output": "b", "system": "", "history": [], "tools": None}
    assert check_sample(row, "here")["output"] == "b"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "train.jsonl").write_text('\ufeff{"input": "a"}\n', encoding="utf-8")
    assert read_json_lines(tmp_path / "train.jsonl", "missing")[0]["input"] == "a"
