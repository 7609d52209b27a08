"""Tabulates a sweep: a line per k and system, a column per split and metric, means over seeds with their range."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from rdjax.data.splits import is_retained
from rdjax.evaluation.results import GAP_CLOSED, KL_FROM_BASE
from rdjax.report.figures import label, spread
from rdjax.report.sweep_data import Cell, merge_methods, score_frame, shared_systems

RESPONSE_TOKENS = "mean_response_tokens"
DIGITS = {KL_FROM_BASE: 3, RESPONSE_TOKENS: 1}  # of other metrics two


class Table(NamedTuple):
    """Holds the text of a table: a head, and rows of the same length."""

    head: list[str]
    rows: list[list[str]]


def sweep_table(cells: Sequence[Cell]) -> Table:
    """Tabulates for each k the systems and the methods' students: the mean over seeds and its range.

    A system that scores the same under all methods (the base, its ceiling) has one row, else one for each method.
    """
    scores = score_frame(cells)
    columns = columns_of(scores)
    systems = sorted(scores["system"].unique(), key="student".__eq__)  # students last, the others in their order
    runs = merge_methods(scores, shared_systems(scores))
    runs = runs.assign(
        system=pd.Categorical(runs["system"], systems),
        method=pd.Categorical(runs["method"], ["", *scores["method"].unique()]),
    )
    rows = []
    for (k, system, method), part in runs.groupby(["k", "system", "method"], observed=True):
        name = f"{label(system)}, {label(method)}" if method else label(system)
        values = dict(list(part.groupby(["split", "metric"])["value"]))
        texts = [spread(values.get(column, []), DIGITS.get(column[1], 2)) for column in columns]
        rows.append([str(k), name, str(part["seed"].nunique()), *texts])
    head = ["k", "system", "seeds", *(f"{label(split)}: {label(metric)}" for split, metric in columns)]
    return Table(head, rows)


def columns_of(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """Returns the split and the metric of every column; what splits are judged by comes first."""
    judged = scores[scores["judged"]].drop_duplicates("split", keep="last").set_index("split")["metric"]
    splits = list(scores["split"].unique())
    tests = [split for split in splits if not is_retained(split)]
    columns = [(split, judged[split]) for split in splits]
    columns += [(split, GAP_CLOSED) for split in tests]
    columns += [(split, KL_FROM_BASE) for split in filter(is_retained, splits)]
    columns += [(split, RESPONSE_TOKENS) for split in tests]
    # A split without a judge is judged by its gap, which needs one column; on retained ones there is no gap to close.
    return [column for column in dict.fromkeys(columns) if column[1] != GAP_CLOSED or not is_retained(column[0])]
