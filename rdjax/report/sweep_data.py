"""Reads a sweep's results into tidy data frames: one row per measured value."""

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from rdjax.evaluation.results import split_metrics
from rdjax.storage.metrics import METRICS, read_metrics, student_lines

Cell = Mapping[str, Any]  # of sweep.json: method, k, seed, and the content of the run's eval.json


def cell_folder(workdir: pathlib.Path, method: str, k: int) -> pathlib.Path:
    """Returns the folder of a cell of a sweep."""
    return workdir / "cells" / f"{method}_k{k}"


def run_folder(workdir: pathlib.Path, method: str, k: int, seed: int) -> pathlib.Path:
    """Returns the folder of the run of one seed of a cell."""
    return cell_folder(workdir, method, k) / f"seed{seed}"


def score_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """Returns all scores, with the columns method, k, seed, split, system, metric, value and judged.

    `value` is NaN where a score is missing; `judged` marks the metric that the split is judged by.
    """
    rows = [
        (cell["method"], cell["k"], cell["seed"], split, system, metric, value, metric == split_metrics(cell)[split])
        for cell in cells
        for split, systems in cell["splits"].items()
        for system, scores in systems.items()
        for metric, value in scores.items()
    ]
    frame = pd.DataFrame(rows, columns=["method", "k", "seed", "split", "system", "metric", "value", "judged"])
    return frame.astype({"value": float, "judged": bool})


def loss_frame(workdir: pathlib.Path, cells: Sequence[Cell]) -> pd.DataFrame:
    """Returns the students' training losses, with the columns method, k, seed, step and loss."""
    rows = [
        (cell["method"], cell["k"], cell["seed"], line["step"], line["loss"])
        for cell in cells
        for line in student_lines(read_metrics(run_folder(workdir, cell["method"], cell["k"], cell["seed"]) / METRICS))
        if "loss" in line  # validation before the first update has none
    ]
    return pd.DataFrame(rows, columns=["method", "k", "seed", "step", "loss"])


def hidden_frame(cells: Sequence[Cell], split: str) -> pd.DataFrame:
    """Returns the distances from the teacher's hidden states on one split.

    Its columns are method, k, seed, system, block and distance; the distance is of the inputs of that block.
    """
    rows = [
        (cell["method"], cell["k"], cell["seed"], system, block, distance)
        for cell in cells
        for system, distances in cell.get("hidden_distance", {}).get(split, {}).items()
        for block, distance in enumerate(distances)
    ]
    return pd.DataFrame(rows, columns=["method", "k", "seed", "system", "block", "distance"])


def shared_systems(scores: pd.DataFrame) -> set[str]:
    """Returns the systems other than the student that score the same under all methods, as one common base does."""
    return {system for system, part in scores.groupby("system") if system != "student" and _same_for_all_methods(part)}


def _same_for_all_methods(scores: pd.DataFrame) -> bool:
    """Tells whether a system's scores, at the same k and seed, do not depend on the method."""
    by_run = scores.pivot(index=["k", "seed", "method"], columns=["split", "metric"], values="value")
    return bool(by_run.groupby(["k", "seed"]).nunique(dropna=False).le(1).all(axis=None))


def merge_methods(scores: pd.DataFrame, systems: Collection[str]) -> pd.DataFrame:
    """Returns the scores with each of these (shared) systems once per k and seed, under the method ""."""
    merged = scores.assign(method=scores["method"].mask(scores["system"].isin(systems), ""))
    return merged.drop_duplicates(["method", "k", "seed", "split", "system", "metric"], keep="last")
