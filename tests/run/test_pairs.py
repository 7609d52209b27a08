"""Responses of the teacher: the first that is accepted, and all that are empty by name."""

import datasets
import pytest

from rdjax.errors import UserError
from rdjax.run.pairs import MOST_NAMED, check_not_empty


def rows(count: int, folder: str = "task/train.jsonl") -> datasets.Dataset:
    return datasets.Dataset.from_list([{"where": f"{folder}, line {number}"} for number in range(1, count + 1)])


def records(lengths: list[int]) -> list[dict]:
    return [{"ids": [1] * length} for length in lengths]


def test_all_rows_with_an_empty_response_are_named(tmp_path):
    path = tmp_path / "responses" / "train.jsonl"
    with pytest.raises(UserError) as caught:
        check_not_empty(rows(4), records([1, 0, 2, 0]), path)
    message = str(caught.value)
    assert message.startswith(
        "2 of 4 responses of the teacher are empty: task/train.jsonl, line 2; task/train.jsonl, line 4;"
    )
    assert f"({path} has all responses)" in message
    check_not_empty(rows(2), records([1, 1]), path)


def test_a_message_has_an_end(tmp_path):
    with pytest.raises(UserError, match=rf"^90 of 90 responses .* and {90 - MOST_NAMED} more; leave"):
        check_not_empty(rows(90), records([0] * 90), tmp_path / "responses" / "train.jsonl")


def test_inputs_that_the_model_wrote_may_have_none(tmp_path):
    written = rows(2, str(tmp_path / "inputs" / "on_rule"))
    check_not_empty(written, records([0, 1]), tmp_path / "responses" / "train.jsonl")
