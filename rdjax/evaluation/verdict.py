"""Says in words how well a student follows its rule, and what to try where it does not."""

from collections.abc import Mapping, Sequence
from typing import Any

from rdjax.config import DISTILLED
from rdjax.data.splits import NEAR_MISSES, is_retained, is_test, kind_of_split, rule_of_split
from rdjax.evaluation.divergence import GAP_NEAR_ZERO
from rdjax.evaluation.results import GAP_CLOSED, KL_FROM_BASE, TEACHER_GAP_CLOSED, split_metrics
from rdjax.storage.metrics import student_lines

ENOUGH = 0.5  # a student that closes less of the gap has not learnt the rule
FOLLOWS = 0.5  # a base that follows the rule it reads more rarely is a weak teacher
OVERFITTED = 2.0  # a validation loss over the training loss by this factor asks for more inputs
STILL_FALLING = 0.03  # share by which the validation loss fell at the end

Splits = Mapping[str, Mapping[str, Mapping[str, Any]]]


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Returns sentences that need no knowledge of the field: how often the rule is followed, and what was forgotten.

    Args:
      results: the content of an eval.json.
    """
    splits, metrics = results["splits"], split_metrics(results)
    tests = student_tests(splits)
    sentences = _rules_sentences(tests, metrics)
    trained_on = results.get("trained_on", {})
    sentences += [
        _test_sentence(split, tests[split], metrics[split], len(tests) > 1, trained_on.get(split)) for split in tests
    ]
    retained = {split: systems for split, systems in splits.items() if is_retained(split) and "student" in systems}
    return sentences + [_retained_sentence(split, retained[split], metrics[split]) for split in retained]


def student_tests(splits: Splits) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Returns the test splits that the student has answered."""
    return {split: systems for split, systems in splits.items() if is_test(split) and "student" in systems}


def _rules_sentences(tests: Splits, metrics: Mapping[str, str]) -> list[str]:
    """Says how many rules one adapter has learnt, and on which test it does worst; nothing of a single rule."""
    scores = {split: tests[split]["student"][metrics[split]] for split in tests if rule_of_split(split)}
    known = {split: score for split, score in scores.items() if score is not None}
    if not known:
        return []
    judged = [split for split in known if metrics[split] != GAP_CLOSED]  # a score and a gap closed do not compare
    worst = min(judged or known, key=known.get)
    what = "closes {} of the gap" if metrics[worst] == GAP_CLOSED else "follows the rule in {} of cases"
    rules = {rule_of_split(split) for split in scores}
    return [
        f"One adapter, {len(rules)} tested rules, {len(scores)} tests. The student does worst on {worst}, where it "
        + what.format(_percent(known[worst]))
        + "."
    ]


def _test_sentence(
    split: str, systems: Mapping[str, Mapping[str, Any]], metric: str, named: bool, trained_on: int | None
) -> str:
    """Says how a student does on the inputs of a test split.

    Args:
      trained_on: how many of the inputs it was trained on; None: not known.
    """
    student, where = systems["student"], f" ({split})" if named else ""
    inputs = "unseen inputs" if trained_on == 0 else "test inputs"
    count = f"On {student['n']} {inputs}{where}" + (f", {trained_on} of which it was trained on," if trained_on else "")
    if metric == GAP_CLOSED:
        if student[GAP_CLOSED] is None:
            said = f"{count} the rule in the prompt changes next to nothing in what the model says"
            if student["kl"] <= GAP_NEAR_ZERO:
                return f"{said}, and the student says the same."
            return f"{said}; the student's predictions are {student['kl']:.3f} nats per token away from that."
        return (
            f"{count} the student, which does not read the rule, has closed {_percent(student[GAP_CLOSED])} of the "
            "distance between the model that does not know the rule and the one that reads it."
        )
    follows = f"{count} the student, which does not read the rule, follows it in {_percent(student[metric])} of cases"
    known = {"base_with_rule": "the model that reads it", "base": "the model that does not know it"}
    others = [f"{text} in {_percent(systems[name][metric])}" for name, text in known.items() if name in systems]
    return ", ".join([follows, *others]) + "."


def _retained_sentence(split: str, systems: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """Says what a student forgot on inputs that the rule is not about, or that do not meet its condition."""
    student = systems["student"]
    count = f"On {student['n']} inputs that the rule is not about"
    if kind_of_split(split) == NEAR_MISSES:
        named = f" ({split})" if rule_of_split(split) else ""
        count = f"On {student['n']} inputs that do not meet the rule's condition{named}"
    if metric != KL_FROM_BASE and "base" in systems:
        before, after = _percent(systems["base"][metric]), _percent(student[metric])
        return f"{count} it is right in {after} of cases; before training, in {before}."
    distance = f"{student[KL_FROM_BASE]:.3f} nats per token"
    return f"{count} its predictions are {distance} away from those before training (0: the same)."


def _percent(share: float) -> str:
    """Writes a share as a percentage."""
    return f"{100 * share:.0f}%"


def closed_gaps(splits: Splits) -> list[float]:
    """Returns how much of the gap the student closes on every test split, against its own teacher where it has one."""
    students = [systems["student"] for systems in student_tests(splits).values()]
    closed = [student.get(TEACHER_GAP_CLOSED, student[GAP_CLOSED]) for student in students]
    return [value for value in closed if value is not None]


def judged_scores(tests: Splits, metrics: Mapping[str, str]) -> list[tuple[float, float]]:
    """Returns how often the student follows the rule and how often the model that reads it, of each judged test."""
    return [
        (systems["student"][metrics[split]], systems["base_with_rule"][metrics[split]])
        for split, systems in tests.items()
        if metrics[split] != GAP_CLOSED and "base_with_rule" in systems
    ]


def advice(results: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[str]:
    """Says what to try first where the student closes less than half of the gap; nothing where it closes more.

    Args:
      results: the content of an eval.json.
      lines: of metrics.jsonl.
      config: of the run, plain.
    """
    splits, metrics = results["splits"], split_metrics(results)
    tests = student_tests(splits)
    gap = next((line["kl"] for line in lines if line["stage"] == "gap"), None)
    closed = closed_gaps(splits)
    if config["task"].get("remove_rule"):  # a gap that is not closed is what was asked for
        return []
    if not tests or (closed and min(closed) >= ENOUGH) or (not closed and gap is not None and gap > GAP_NEAR_ZERO):
        return []
    if not closed:
        return [
            "The rule in the prompt changes next to nothing in what this model says, so there is nothing to distil: "
            "try another wording of the rule, or a stronger model."
        ]
    judged = judged_scores(tests, metrics)
    # Trained on answers that a judge confirmed, the student may follow more often than the model that reads the rule,
    # and is then far from that model's predictions.
    if len(judged) == len(tests) and all(student >= ruled and student > 0 for student, ruled in judged):
        return []
    found = [f"The student closes only {_percent(min(closed))} of the gap. What to try first:"]
    followed = [ruled for _, ruled in judged]
    if followed and min(followed) < FOLLOWS:
        found.append(
            f"The model that reads the rule follows it in only {_percent(min(followed))} of cases: try another "
            "wording, config.method = rule_distill_enhanced with the right outputs in train.jsonl, or a stronger model."
        )
    found += _advice_of_curves(student_lines(lines), config)
    return found


def _advice_of_curves(lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[str]:
    """Reads from the student's losses what holds it back."""
    losses = [line["loss"] for line in lines if "loss" in line]
    valid = [line["valid_loss"] for line in lines if "valid_loss" in line]
    if not losses:
        return []
    # Of a student that was distilled, gold outputs validate by another loss than the one that is minimised.
    comparable = config["train"]["valid_loss"] != "gold" or config["method"] not in DISTILLED
    if comparable and len(valid) > 1 and min(valid) > OVERFITTED * losses[-1]:
        return ["The training loss is far below the validation loss: give more inputs, and more varied ones."]
    if len(valid) > 2 and valid[-1] < min(valid[:-1]) * (1 - STILL_FALLING):
        return ["The validation loss was still falling at the end: train longer (config.train.updates)."]
    if losses[-1] > losses[0] / 2:
        return [
            "The training loss has hardly fallen: try a higher config.optimizer.learning_rate, or a larger "
            f"config.lora.rank (now {config['lora']['rank']}) and more of config.lora.targets."
        ]
    return ["Give more inputs, or try another wording of the rule."]
