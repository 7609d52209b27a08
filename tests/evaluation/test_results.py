"""Tests how the scores of eval.json are read and printed."""

from rdjax.evaluation.results import results_table, split_metrics

SCORES = {"kl": 0.25, "gap_closed": 0.875, "n": 10, "refusal": 0.5}
RESULTS = {
    "splits": {
        "test_harmful": {"base": SCORES | {"gap_closed": 0.0}, "student": SCORES},
        "test_free": {"base": SCORES | {"gap_closed": None}, "student": SCORES},
    },
    "metric": {"test_harmful": "refusal", "test_free": "gap_closed"},
}


def test_metrics_are_those_that_the_file_names():
    assert split_metrics(RESULTS) == {"test_harmful": "refusal", "test_free": "gap_closed"}


def test_the_metric_of_an_earlier_version_is_the_first_score():
    splits = {"test": {"base": {"negative": 0.5, "gap_closed": 0.0}}, "retain": {"base": {"gap_closed": None, "n": 3}}}
    assert split_metrics({"splits": splits}) == {"test": "negative", "retain": "gap_closed"}


def test_nothing_evaluated_has_no_metric():
    assert split_metrics({"splits": {}}) == split_metrics({"splits": {}, "metric": {}}) == {}


def test_the_table_has_a_line_per_system_and_the_gap_once():
    assert [line.split() for line in results_table(RESULTS).splitlines()] == [
        ["system", "test_harmful", "refusal", "test_harmful", "gap_closed", "test_free", "gap_closed"],
        ["base", "0.50", "0.00", "-"],
        ["student", "0.50", "0.88", "0.88"],
    ]
