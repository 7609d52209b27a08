"""Reads the scores that eval.json holds, and prints them as a table."""

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from rdjax.config import RETAIN

GAP_CLOSED = "gap_closed"  # the metric of a split that no judge looks at
TEACHER_GAP_CLOSED = "gap_closed_to_teacher"  # of a student whose teacher is not the base
KL_FROM_BASE = "kl_from_base"  # the metric of retain if no judge looks at it


def split_metrics(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the name of each split's metric: the field "metric" of an eval.json or of a sweep's cell.

    Earlier versions wrote no such field: there it is the name of a system's first score.
    """
    if "metric" in results:
        return dict(results["metric"])
    return {split: next(iter(next(iter(systems.values())))) for split, systems in results["splits"].items()}


def results_table(results: Mapping[str, Any]) -> str:
    """Formats the content of an eval.json: a line per system, for each split its metric and the gap closed."""
    splits = results["splits"]
    metrics = split_metrics(results)
    columns = [
        (split, name)
        for split, metric in metrics.items()
        for name in dict.fromkeys([metric, KL_FROM_BASE if split == RETAIN else GAP_CLOSED])
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


def _format_score(value: float | None) -> str:
    """Writes a score with two digits, and a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"
