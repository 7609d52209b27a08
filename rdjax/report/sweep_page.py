"""Builds the page of a sweep: figures of scores, losses and hidden states, a table, and outputs side by side."""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from rdjax.data.splits import is_retained
from rdjax.report.figures import colours_of, draw, label
from rdjax.report.run_page import read_predictions, side_by_side
from rdjax.report.sweep_data import (
    Cell,
    hidden_frame,
    loss_frame,
    merge_methods,
    run_folder,
    score_frame,
    shared_systems,
)
from rdjax.report.sweep_table import sweep_table
from rdjax.storage.records import RunRecord, Sweep, read_record
from rdjax.storage.workdir import RECORD, SWEEP

OUTPUT_ROWS = 8  # outputs of each method that the page shows

# How systems other than the students are drawn.
REFERENCE_LINES = {"base_with_rule": "--", "base": ":", "enhanced_with_rule": "-."}


def sweep_figure(scores: pd.DataFrame, colours: Mapping[str, str]) -> str:
    """Draws the student's score against k on every split: the mean over seeds and the range, with the references.

    Args:
      scores: a `score_frame`.
      colours: of the methods, in the order of the legend; so for all figures.
    """
    judged = scores[scores["judged"]]
    metrics = judged.drop_duplicates("split").set_index("split")["metric"]
    # An enhanced teacher is always a method's own.
    runs = merge_methods(judged, shared_systems(scores) - {"enhanced_with_rule"})
    over_seeds = runs.groupby(["split", "system", "method", "k"])["value"]
    summary = over_seeds.agg(["mean", "min", "max"]).dropna().reset_index()
    ks = sorted(scores["k"].unique())

    def paint(axes: Sequence[Any]) -> None:
        for axis, split in zip(axes, metrics.index, strict=True):
            part = summary[summary["split"] == split]
            for system, style in REFERENCE_LINES.items():
                for method, line in by_method(part[part["system"] == system], ["", *colours]):
                    axis.plot(line["k"], line["mean"], color=colours.get(method, "black"), linestyle=style)
            for method, line in by_method(part[part["system"] == "student"], colours):
                colour = colours[method]
                axis.plot(line["k"], line["mean"], color=colour, label=label(method), marker="o", markersize=4)
                axis.fill_between(line["k"], line["min"], line["max"], color=colour, alpha=0.15, linewidth=0)
            axis.set_title(f"{label(split)}: {label(metrics[split])}")
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, map(str, ks))
            axis.minorticks_off()
            axis.set_xlabel("k (training samples)")
            axis.set_ylim(top=1.03)
        axes[0].legend(fontsize=8)

    return draw(len(metrics), paint, height=3.6)


def methods_figure(scores: pd.DataFrame, colours: Mapping[str, str]) -> str:
    """Draws every method's student on every split at one k: the mean over seeds with the range, a line for each method.

    A ring is the same student with the rule in its prompt; vertical lines are the base with the rule and without.

    Args:
      scores: a `score_frame`.
      colours: of the methods, in the order of the lines.
    """
    judged = scores[scores["judged"]].dropna(subset="value")
    splits, methods = list(judged["split"].unique()), list(colours)
    metrics = judged.drop_duplicates("split").set_index("split")["metric"]

    def paint(axes: Sequence[Any]) -> None:
        for axis, split in zip(axes, splits, strict=True):
            part = judged[judged["split"] == split]
            for system, style in REFERENCE_LINES.items():
                values = part.loc[part["system"] == system, "value"]
                if len(values):
                    axis.axvline(values.mean(), color="black", linestyle=style, linewidth=1)
            for row, method in enumerate(methods):
                own = part[part["method"] == method].groupby("system")["value"]
                for system, face in (("student_with_rule", "none"), ("student", colours[method])):
                    if system in own.groups:
                        values = own.get_group(system)
                        axis.scatter(values.mean(), row, s=34, facecolor=face, edgecolor=colours[method], zorder=3)
                if "student" in own.groups:
                    values = own.get_group("student")
                    axis.plot([values.min(), values.max()], [row, row], color=colours[method], linewidth=2, alpha=0.6)
            axis.set_title(f"{label(split)}: {label(metrics[split])}")
            axis.set_yticks(range(len(methods)), map(label, methods))
            axis.invert_yaxis()
            axis.tick_params(labelleft=axis is axes[0])
            axis.set_xlim(right=1.03)

    return draw(len(splits), paint, height=1.2 + 0.26 * len(methods), width=4.2)


def by_method(frame: pd.DataFrame, methods: Iterable[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the rows of each method that has any, in the order of `methods`; "" stands for all methods."""
    for method in methods:
        part = frame[frame["method"] == method]
        if len(part):
            yield method, part


def ceiling_figure(scores: pd.DataFrame, colours: Mapping[str, str]) -> str:
    """Draws every run's student against its ceiling, its teacher with the rule.

    Returns "" where all methods have the same ceiling.
    """
    systems = set(scores["system"])
    if "base_with_rule" not in systems - shared_systems(scores) and "enhanced_with_rule" not in systems:
        return ""
    tests = scores[scores["judged"] & ~scores["split"].map(is_retained)]
    points = tests.pivot(index=["split", "method", "k", "seed"], columns="system", values="value")
    points = points.reindex(columns=["student", "base_with_rule", "enhanced_with_rule"]).reset_index()
    points["ceiling"] = points["enhanced_with_rule"].fillna(points["base_with_rule"])
    points = points.dropna(subset=["student", "ceiling"])
    splits = tests["split"].unique()

    def paint(axes: Sequence[Any]) -> None:
        for axis, split in zip(axes, splits, strict=True):
            axis.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
            for method, part in by_method(points[points["split"] == split], colours):
                style = {"color": colours[method], "label": label(method), "s": 28, "alpha": 0.8}
                axis.scatter(part["ceiling"], part["student"], **style)
            axis.set_title(label(split))
            axis.set_xlabel("teacher with rule (ceiling)")
            axis.set_xlim(0, 1.03)
            axis.set_ylim(0, 1.03)
        axes[0].set_ylabel("student")
        axes[0].legend(fontsize=8)

    return draw(len(splits), paint, height=3.6)


def sweep_curves(losses: pd.DataFrame, colours: Mapping[str, str], ks: Sequence[int]) -> str:
    """Draws the students' training loss over updates, the mean over seeds. `losses`: a `loss_frame`."""
    means = losses.groupby(["k", "method", "step"], as_index=False)["loss"].mean()

    def paint(axes: Sequence[Any]) -> None:
        for axis, k in zip(axes, ks, strict=True):
            for method, line in by_method(means[means["k"] == k], colours):
                axis.plot(line["step"], line["loss"], color=colours[method], label=label(method))
            axis.set_title(f"k = {k}")
            axis.set_xlabel("updates")
            axis.set_yscale("log")
        axes[0].set_ylabel("training loss (each method's own)")
        axes[-1].legend(fontsize=8)

    return draw(len(ks), paint) if len(losses) else ""


def sweep_hidden(distances: pd.DataFrame, colours: Mapping[str, str], split: str, ks: Sequence[int]) -> str:
    """Draws the distance from the teacher's hidden states at every block, the mean over seeds.

    Args:
      distances: a `hidden_frame`, of this split.
    """
    means = distances.groupby(["k", "method", "system", "block"], as_index=False)["distance"].mean()

    def paint(axes: Sequence[Any]) -> None:
        for axis, k in zip(axes, ks, strict=True):
            part = means[means["k"] == k]
            for method, line in by_method(part[part["system"] == "base"], colours):
                axis.plot(line["block"], line["distance"], color=colours[method], linestyle=":")
            for method, line in by_method(part[part["system"] == "student"], colours):
                style = {"color": colours[method], "label": label(method), "marker": "o", "markersize": 4}
                axis.plot(line["block"], line["distance"], **style)
            axis.set_title(f"{label(split)}, k = {k}")
            axis.set_xlabel("input of block")
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel(r"$||u_t - u_s||^2$")
        axes[0].legend(fontsize=8)

    return draw(len(ks), paint)


def sweep_outputs(workdir: pathlib.Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Returns outputs of every method side by side: of its first seed at the largest k, on the first split."""
    parts = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        cell = max((cell for cell in cells if cell["method"] == method), key=lambda cell: cell["k"])
        split = next(iter(cell["splits"]), None)
        if split is None:
            continue
        folder = run_folder(workdir, cell["method"], cell["k"], cell["seed"])
        predictions = read_predictions(folder, {split: cell["splits"][split]})
        if any(predictions[split].values()):
            title = f"{label(method)}, k = {cell['k']}, seed {cell['seed']}"
            parts += side_by_side(predictions, OUTPUT_ROWS, title)
    return parts


def sweep_figures(workdir: pathlib.Path, cells: Sequence[Cell]) -> dict[str, str]:
    """Draws all figures of a sweep, by name; one without data is "" or missing."""
    colours, ks = colours_of(cell["method"] for cell in cells), sorted({cell["k"] for cell in cells})
    figures = {"curves": sweep_curves(loss_frame(workdir, cells), colours, ks)}
    split = next((split for cell in cells for split in cell["splits"]), None)
    if split is not None:
        scores = score_frame(cells)
        by_k = sweep_figure if len(ks) > 1 else methods_figure
        figures |= {"sweep": by_k(scores, colours), "ceiling": ceiling_figure(scores, colours)}
        figures["hidden"] = sweep_hidden(hidden_frame(cells, split), colours, split, ks)
    return figures


def sweep_page(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what the template shows of a sweep."""
    record, summary = read_record(workdir / RECORD, RunRecord), read_record(workdir / SWEEP, Sweep)
    cells, config = summary["cells"], record["config"]
    return {
        "kind": "sweep",
        "title": f"{config['task']['name']}: methods against k",
        "facts": {
            "model": config["model"]["path"],
            "task": config["task"]["name"],
            "methods": ", ".join(config["sweep"]["methods"]),
            "k": ", ".join(map(str, config["sweep"]["ks"])),
            "seeds": ", ".join(map(str, config["sweep"]["seeds"])),
        },
        "table": sweep_table(cells) if any(cell["splits"] for cell in cells) else None,
        # Of the largest k, which has the most labelled outputs.
        "judge_errors": max(cells, key=lambda cell: cell["k"]).get("judge_errors", {}) if cells else {},
        "failed": summary.get("failed", []),
        "outputs": sweep_outputs(workdir, cells),
        "figures": sweep_figures(workdir, cells),
        "record": record,
        "config": json.dumps(config, indent=2),
    }
