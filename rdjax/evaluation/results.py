"""Reads the scores that eval.json holds, and prints them as a table."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from rdjax.data.splits import is_retained, is_test, rule_of_split

GAP_CLOSED = "gap_closed"  # the metric of a split that no judge looks at
TEACHER_GAP_CLOSED = "gap_closed_to_teacher"  # of a student whose teacher is not the base
KL_FROM_BASE = "kl_from_base"  # the metric of a retained split if no judge looks at it
# What every system has beside the score of a judge.
SCORES = (GAP_CLOSED, TEACHER_GAP_CLOSED, KL_FROM_BASE, "kl", "mean_response_tokens", "n")


def unjudged_metric(split: str) -> str:
    """Returns the metric that a split has without a judge."""
    return KL_FROM_BASE if is_retained(split) else GAP_CLOSED


def split_metrics(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the name of each split's metric: the field "metric" of an eval.json or of a sweep's cell.

    Earlier versions wrote no such field: there it is the name of a system's first score.
    """
    if "metric" in results:
        return dict(results["metric"])
    return {split: next(iter(next(iter(systems.values())))) for split, systems in results["splits"].items()}


def results_table(results: Mapping[str, Any]) -> str:
    """Formats the content of an eval.json: a line per system, for each split its metric and the gap closed.

    With several rules it has a line per split, and the mean of the rules' tests.
    """
    splits = results["splits"]
    metrics = split_metrics(results)
    if any(map(rule_of_split, splits)):
        return _rules_table(splits, metrics)
    columns = [
        (split, name) for split, metric in metrics.items() for name in dict.fromkeys([metric, unjudged_metric(split)])
    ]
    columns += [
        (split, TEACHER_GAP_CLOSED)
        for split in splits
        if any(TEACHER_GAP_CLOSED in scores for scores in splits[split].values())
    ]
    rows = [
        [system, *(_format_score(splits[split][system].get(name)) for split, name in columns)]
        for system in next(iter(splits.values()))
    ]
    head = ["system", *(f"{split} {name}" for split, name in columns)]
    return tabulate(rows, head, tablefmt="plain", disable_numparse=True)


def _rules_table(splits: Mapping[str, Any], metrics: Mapping[str, str]) -> str:
    """Formats the scores of several rules: a line per split, and the mean of those of each metric."""
    systems = list(next(iter(splits.values())))

    def closed_of(split: str) -> float | None:
        return splits[split].get("student", {}).get(GAP_CLOSED)

    def line(name: str, metric: str, scores: Sequence[float | None], closed: float | None) -> list[str]:
        return [name, metric, *map(_format_score, scores), _format_score(closed)]

    lines = [
        line(split, metrics[split], [splits[split][system].get(metrics[split]) for system in systems], closed_of(split))
        for split in splits
    ]
    judged_by = collections.defaultdict(list)
    for split in splits:
        if rule_of_split(split) and is_test(split):
            judged_by[metrics[split]].append(split)
    for metric, tests in judged_by.items():
        scores = [_mean([splits[split][system].get(metric) for split in tests]) for system in systems]
        lines.append(line(f"mean of {len(tests)}", metric, scores, _mean(list(map(closed_of, tests)))))
    head = ["split", "metric", *systems, "gap closed by the student"]
    return tabulate(lines, head, tablefmt="plain", disable_numparse=True)


def _mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _format_score(value: float | None) -> str:
    """Writes a score with two digits, and a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"
