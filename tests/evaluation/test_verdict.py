"""Results in words, and what to try where they are bad."""

import pytest

from rdjax.evaluation.verdict import advice, verdict

CONFIG = {"task": {"remove_rule": False}, "lora": {"rank": 16}}
CONFIG |= {"method": "rule_distill_base", "train": {"valid_loss": "training"}}


def results(closed: float | None, student: float = 0.9, teacher: float = 0.95, metric: str = "exact_match", **more):
    systems = {
        "base": {metric: 0.05, "gap_closed": 0.0, "n": 40},
        "base_with_rule": {metric: teacher, "gap_closed": 1.0, "n": 40},
        "student": {metric: student, "n": 40} | {"gap_closed": closed} | more,
    }
    return {"splits": {"test": systems}, "metric": {"test": metric}, "trained_on": {"test": 0}}


def losses(*pairs):
    return [{"stage": "gap", "kl": 0.3}] + [
        {"stage": "student", "step": step, "loss": loss, "valid_loss": valid}
        for step, (loss, valid) in enumerate(pairs)
    ]


def test_a_judged_student_is_compared_with_the_model_that_reads_the_rule():
    assert verdict(results(0.9)) == [
        "On 40 unseen inputs the student, which does not read the rule, follows it in 90% of cases, the model that "
        "reads it in 95%, the model that does not know it in 5%."
    ]


@pytest.mark.parametrize(
    ("trained_on", "said"),
    [({}, "On 40 test inputs the"), ({"test": 3}, "On 40 test inputs, 3 of which it was trained on, the student")],
)
def test_inputs_are_called_unseen_only_where_they_are(trained_on, said):
    assert verdict(results(0.9) | {"trained_on": trained_on})[0].startswith(said)


def test_without_a_judge_the_distance_is_told():
    (sentence,) = verdict(results(0.81, metric="gap_closed"))
    assert "has closed 81% of the distance" in sentence


def test_the_worst_of_several_rules_is_one_that_a_judge_looked_at():
    parts = {"a/test": results(0.9, student=0.8), "b/test": results(0.9, student=0.7), "c/test": results(0.6)}
    splits = {name: part["splits"]["test"] for name, part in parts.items()}
    metric = {"a/test": "exact_match", "b/test": "exact_match", "c/test": "gap_closed"}
    assert (
        "3 tested rules, 3 tests. The student does worst on b/test" in verdict({"splits": splits, "metric": metric})[0]
    )
    del splits["a/test"], splits["b/test"]
    assert "worst on c/test, where it closes 60% of the gap" in verdict({"splits": splits, "metric": metric})[0]


def test_what_was_forgotten_is_told_by_the_judge_or_by_the_divergence():
    found = results(0.9)
    found["splits"]["retain"] = {"base": {"exact_match": 1.0}, "student": {"exact_match": 0.98, "n": 8}}
    found["metric"]["retain"] = "exact_match"
    assert verdict(found)[1] == (
        "On 8 inputs that the rule is not about it is right in 98% of cases; before training, in 100%."
    )
    found["splits"]["retain"] = {"student": {"kl_from_base": 0.02, "n": 8}}
    found["metric"]["retain"] = "kl_from_base"
    assert "0.020 nats per token away" in verdict(found)[1]
    found["splits"]["near_misses"], found["metric"]["near_misses"] = found["splits"]["retain"], "kl_from_base"
    assert verdict(found)[2].startswith("On 8 inputs that do not meet the rule's condition its predictions are 0.020")


@pytest.mark.parametrize(
    ("found", "lines", "word"),
    [
        (results(0.3), losses((1.0, 1.0), (0.1, 0.9), (0.1, 0.9)), "more inputs"),
        (results(0.3), losses((1.0, 1.0), (0.4, 0.7), (0.3, 0.5)), "train longer"),
        (results(0.3), losses((1.0, 1.0), (0.9, 1.0), (0.9, 1.0)), "higher config.optimizer.learning_rate"),
        (results(0.3, student=0.1, teacher=0.2), losses((1.0, 1.0)), "rule_distill_enhanced"),
        (results(None), [{"stage": "gap", "kl": 0.001}], "nothing to distil"),
    ],
)
def test_advice_follows_from_the_curves(found, lines, word):
    assert word in " ".join(advice(found, lines, CONFIG))


def test_short_trials_and_a_rate_that_was_replaced_give_no_advice():
    curves = losses((1.0, 1.0), (0.4, 0.7), (0.3, 0.5))
    others = [
        {"stage": stage, "step": 1, "loss": 9.0, "valid_loss": 0.1} for stage in ("student", "student_trial_3.6e-04")
    ]
    found = [{**line, "stage": "student_at_3.6e-04"} if line["stage"] == "student" else line for line in curves]
    assert "train longer" in " ".join(advice(results(0.3), [*others, *found], CONFIG))


def test_a_student_that_follows_as_often_as_the_model_that_reads_the_rule_gets_no_advice():
    assert advice(results(-0.5, student=0.5, teacher=0.3), losses((1.0, 1.0)), CONFIG) == []
    assert advice(results(-0.5, student=0.0, teacher=0.0), losses((1.0, 1.0)), CONFIG) != []


def test_a_student_that_follows_a_rule_that_its_teacher_never_does_gets_no_advice():
    assert advice(results(-3.0, student=0.98, teacher=0.0), losses((1.0, 1.0)), CONFIG) == []


def test_losses_of_different_kinds_are_not_compared():
    curves = losses((1.0, 2.0), (0.7, 1.8), (0.6, 1.7), (0.5, 1.45))
    gold = CONFIG | {"train": {"valid_loss": "gold"}}
    assert "more inputs" in " ".join(advice(results(0.3), curves, CONFIG))
    assert "train longer" in " ".join(advice(results(0.3), curves, gold))


def test_a_rule_that_changes_nothing_says_nothing_of_a_student_that_changed():
    assert verdict(results(None, metric="gap_closed", kl=0.001))[0].endswith("and the student says the same.")
    assert "1.237 nats per token away" in verdict(results(None, metric="gap_closed", kl=1.237))[0]


def test_a_student_that_has_learnt_gets_no_advice():
    assert advice(results(0.6), losses((1.0, 1.0), (0.1, 0.9)), CONFIG) == []
    # Its own teacher counts, if that is another.
    assert advice(results(0.1, gap_closed_to_teacher=0.8), losses((1.0, 1.0)), CONFIG) == []


def test_a_rule_that_was_removed_gets_no_advice():
    removed = {**CONFIG, "task": {"remove_rule": True}}
    assert advice(results(0.1), losses((1.0, 1.0)), CONFIG) != []
    assert advice(results(0.1), losses((1.0, 1.0)), removed) == []
