"""Tests how written inputs are divided: a rule is about those to which it changes the answers."""

import pytest

from rdjax.errors import UserError
from rdjax.generation.inputs import Rejected
from rdjax.run.inputs import check_enough, spread
from rdjax.run.rule_effect import MeasuredInputs, alternate, divide_by_effect, effect_limit


def inputs(*effects: float) -> MeasuredInputs:
    return MeasuredInputs([f"{effect}" for effect in effects], list(effects))


def test_the_limit_is_a_share_of_where_the_rule_changes_most():
    assert effect_limit([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]) == pytest.approx(0.2)
    assert effect_limit([0.5]) == pytest.approx(0.1) and effect_limit([]) == 0.0


def test_a_rule_about_a_topic_has_inputs_off_it():
    on_rule, off_rule, note = divide_by_effect(inputs(1.0, 1.0, 0.9, 0.1), inputs(0.05, 0.1, 0.15, 0.8))
    assert on_rule == ["1.0", "1.0", "0.9"]
    assert off_rule == ["0.05", "0.1", "0.1", "0.15"]  # the last one that was written with the rule is a near miss
    assert "3 of 4 inputs written without it, and to 1 of 4 written with it; 4 of these are kept" in note
    _, off_rule, note = divide_by_effect(inputs(1.0, 0.1, 0.1, 0.1), inputs(0.0, 0.9, 0.9))
    assert len(off_rule) == 0 and "about everything" in note
    _, off_rule, note = divide_by_effect(inputs(1.0, 0.1, 0.1, 0.1), inputs(0.0))
    assert off_rule == ["0.0", "0.1"] and note.endswith("2 of these are kept unchanged, 2 left out")


def test_the_users_own_inputs_are_never_retained():
    own, retained, note = divide_by_effect(inputs(1.0, 1.0, 0.9, 0.1), inputs(0.05, 0.1, 0.15, 0.8), are_own=True)
    assert own == ["1.0", "1.0", "0.9", "0.1"] and retained == ["0.05", "0.1", "0.15"]
    assert "written with it" not in note
    assert "join" not in divide_by_effect(inputs(1.0), inputs(0.9), are_own=True)[2]


def test_a_rule_about_everything_takes_all_inputs_and_holds_none():
    on_rule, off_rule, note = divide_by_effect(inputs(1.0, 0.9), inputs(0.9, 0.8, 0.0))
    assert sorted(on_rule) == ["0.0", "0.8", "0.9", "0.9", "1.0"] and off_rule == []
    assert "about everything" in note


def test_inputs_that_the_rule_hardly_concerns_are_left_out_where_none_are_retained():
    on_rule, off_rule, note = divide_by_effect(inputs(1.0, 0.1), inputs())
    assert (on_rule, off_rule) == (["1.0"], [])
    assert note == "the rule hardly changes the answers to 1 of 2 inputs written with it; these are left out"
    assert divide_by_effect(inputs(1.0, 0.9), inputs()) == (["1.0", "0.9"], [], "")
    assert divide_by_effect(inputs(1.0, 0.1), inputs(), are_own=True) == (["1.0", "0.1"], [], "")


def test_two_lists_are_mixed_evenly():
    assert alternate(["a", "b", "c", "d"], ["x", "y"]) == ["a", "x", "b", "c", "y", "d"]
    assert alternate(["a"], []) == ["a"]


def test_too_few_inputs_are_an_error_with_the_reasons(capsys):
    rejected = [Rejected("blah blah", "no sentence")] * 3 + [Rejected("", "empty")]
    with pytest.raises(UserError, match=r"only 2 usable inputs \(left out: 3 no sentence, 1 empty; one was"):
        check_enough(["one", "two"], rejected, "on_rule", 64)
    check_enough([], rejected, "off_rule", 32)
    assert "inputs off rule: 0 of 32 written; left out: 3 no sentence, 1 empty" in capsys.readouterr().out


def test_k_bounds_the_written_rows_that_are_learnt():
    rows = [{"input": f"{number}"} for number in range(32)]
    assert {name: len(part) for name, part in spread(rows, {}, 0).items()} == {"test": 8, "valid": 4, "train": 20}
    parts = spread(rows, {"train": [{"input": "mine"}], "test": [], "valid": []}, 4)
    assert [row["input"] for row in parts["train"]] == ["mine", "0", "1", "2"] and set(parts) == {"train"}
