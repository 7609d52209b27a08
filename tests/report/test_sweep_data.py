"""Tests the data frames of a sweep: one row per value, and which systems all methods share."""

import json

import pytest

from rdjax.report.sweep_data import hidden_frame, loss_frame, merge_methods, run_folder, score_frame, shared_systems
from rdjax.report.sweep_table import sweep_table


def cell(method: str, seed: int, base: float, student: float | None) -> dict:
    """A cell with one split and two systems."""
    scores = {"base": {"n": 5, "refusal": base}, "student": {"n": 5, "refusal": student}}
    hidden = {"test": {"student": [0.0, 0.5]}}
    return {
        "method": method,
        "k": 4,
        "seed": seed,
        "splits": {"test": scores},
        "metric": {"test": "refusal"},
        "hidden_distance": hidden,
    }


@pytest.fixture
def cells():
    return [
        cell("one", 0, 0.25, 0.5),
        cell("one", 1, 0.5, None),
        cell("two", 0, 0.25, 0.75),
        cell("two", 1, 0.5, 1.0),
    ]


def test_every_score_is_a_row(cells):
    scores = score_frame(cells)
    assert len(scores) == 4 * 2 * 2
    judged = scores[scores["judged"]]
    assert set(judged["metric"]) == {"refusal"} and len(judged) == 8
    (value,) = judged.query("method == 'two' and seed == 0 and system == 'student'")["value"]
    assert value == 0.75
    (missing,) = judged.query("method == 'one' and seed == 1 and system == 'student'")["value"]
    assert missing != missing  # NaN


def test_no_cell_has_no_row():
    assert score_frame([]).empty and shared_systems(score_frame([])) == set()


def test_a_system_with_the_same_scores_under_all_methods_is_shared(cells):
    assert shared_systems(score_frame(cells)) == {"base"}
    cells[3]["splits"]["test"]["base"]["refusal"] = 0.75
    assert shared_systems(score_frame(cells)) == set()


def test_a_split_that_one_method_lacks_is_a_difference(cells):
    assert shared_systems(score_frame([*cells[:3]])) == {"base"}, "a failed run is none"
    for each in cells[:2]:
        each["splits"]["retain"] = {"base": {"n": 5, "refusal": 0.5}}
        each["metric"]["retain"] = "refusal"
    assert shared_systems(score_frame(cells)) == set()


def test_the_student_is_never_shared(cells):
    for each in cells:
        each["splits"]["test"]["student"] = {"n": 5, "refusal": 1.0}
    assert shared_systems(score_frame(cells)) == {"base"}


def test_shared_systems_count_once_per_seed(cells):
    scores = score_frame(cells)
    merged = merge_methods(scores, {"base"}).query("judged")
    assert sorted(merged.query("system == 'base'")["value"]) == [0.25, 0.5]
    assert set(merged.query("system == 'base'")["method"]) == {""}
    assert sorted(merged.query("system == 'student'")["method"]) == ["one", "one", "two", "two"]


def test_losses_are_those_of_the_student(cells, tmp_path):
    folder = run_folder(tmp_path, "two", 4, 1)
    folder.mkdir(parents=True)
    lines = [
        {"stage": "gap", "step": 0, "kl": 1.0},
        {"stage": "student", "step": 0, "valid_loss": 2.0},  # before the first update
        {"stage": "student", "step": 3, "loss": 0.7},  # at a rate that was replaced
        {"stage": "student_trial_3.6e-04", "step": 1, "loss": 0.6},
        {"stage": "student_at_3.6e-04", "step": 3, "loss": 0.5},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses = loss_frame(tmp_path, cells)
    assert losses.to_dict("records") == [{"method": "two", "k": 4, "seed": 1, "step": 3, "loss": 0.5}]


def test_a_metric_of_a_split_is_one_column(cells):
    for each in cells:
        each["splits"]["retain"] = {"student": {"n": 5, "kl_from_base": 0.01234, "gap_closed": None}}
        each["metric"]["retain"] = "kl_from_base"
    table = sweep_table(cells)
    assert table.head.count("retain: kl from base") == 1
    assert table.rows[-1][table.head.index("retain: kl from base")].startswith("0.012 ")


def test_hidden_distances_have_a_row_per_block(cells):
    distances = hidden_frame(cells, "test").query("method == 'one' and seed == 0")
    assert list(zip(distances["system"], distances["block"], distances["distance"], strict=True)) == [
        ("student", 0, 0.0),
        ("student", 1, 0.5),
    ]
    assert hidden_frame(cells, "retain").empty
