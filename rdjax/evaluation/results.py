"""Reads the scores that eval.json holds, and prints them as a table."""

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

GAP_CLOSED = "gap_closed"  # the metric of a split that no judge looks at


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
    columns = [
        (split, name)
        for split, metric in split_metrics(results).items()
        for name in dict.fromkeys([metric, GAP_CLOSED])
    ]
    rows = [
        [system, *(_format_score(splits[split][system][name]) for split, name in columns)]
        for system in next(iter(splits.values()))
    ]
    head = ["system", *(f"{split} {name}" for split, name in columns)]
    return tabulate(rows, head, tablefmt="plain", disable_numparse=True)


def _format_score(value: float | None) -> str:
    """Writes a score with two digits, and a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"
