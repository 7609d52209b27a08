"""What the report of a sweep shows."""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rdjax.config import RETAIN
from rdjax.report.figures import colours_of, draw, label, metric_of, spread
from rdjax.report.run_page import read_predictions, side_by_side
from rdjax.storage.files import read_json, read_lines

Cell = Mapping[str, Any]  # of sweep.json: method, k, seed, and what the run's eval.json holds

SHOWN_ROWS = 8  # outputs of each method that the page shows


def cell_folder(workdir: pathlib.Path, method: str, k: int) -> pathlib.Path:
    """Where a sweep keeps a cell."""
    return workdir / "cells" / f"{method}_k{k}"


def run_folder(workdir: pathlib.Path, method: str, k: int, seed: int) -> pathlib.Path:
    """Where a sweep keeps the run of one seed of a cell."""
    return cell_folder(workdir, method, k) / f"seed{seed}"


def sweep_figure(cells: Sequence[Cell]) -> str:
    """The student's score against k on every split: mean over seeds, band from lowest to highest; ceiling and base."""
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    splits = list(dict.fromkeys(split for cell in cells for split in cell["splits"]))
    colours = colours_of(methods)
    ks = sorted({cell["k"] for cell in cells})

    def values(split: str, system: str, k: int, method: str | None) -> list[float]:
        """Of every seed once."""
        found = {}
        for cell in cells:
            scores = cell["splits"].get(split, {}).get(system)
            if scores and cell["k"] == k and method in (None, cell["method"]):
                found[cell["seed"]] = scores[metric_of(scores)]
        return [value for value in found.values() if value is not None]

    def band(axis: Any, split: str, method: str, color: str, label: str) -> None:
        points = [(k, found) for k in ks if (found := values(split, "student", k, method))]
        at = [k for k, _ in points]
        means = [statistics.mean(found) for _, found in points]
        axis.plot(at, means, color=color, label=label, marker="o", markersize=4)
        low, high = [min(found) for _, found in points], [max(found) for _, found in points]
        axis.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)

    # One line where all methods have the same base; a line each where rule, task or model differ.
    lines = [
        (system, line, (None,) if agree(cells, system) else methods)
        for system, line in (("base_with_rule", "--"), ("base", ":"))
    ]
    lines.append(("enhanced_with_rule", "-.", methods))

    def paint(axes: Sequence[Any]) -> None:
        for axis, split in zip(axes, splits, strict=True):
            for system, line, drawn in lines:
                for method in drawn:
                    found = {k: values(split, system, k, method) for k in ks}
                    means = {k: statistics.mean(scores) for k, scores in found.items() if scores}
                    if means:
                        axis.plot(list(means), list(means.values()), color=colours.get(method, "black"), linestyle=line)
            for method in methods:
                band(axis, split, method, color=colours[method], label=label(method))
            system = next(iter(next(cell["splits"][split] for cell in cells if split in cell["splits"]).values()))
            axis.set_title(f"{label(split)}: {label(metric_of(system))}")
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, map(str, ks))
            axis.minorticks_off()
            axis.set_xlabel("k (training samples)")
            axis.set_ylim(top=1.03)
        axes[0].legend(fontsize=8)

    return draw(len(splits), paint, height=3.6)


def ceiling_figure(cells: Sequence[Cell]) -> str:
    """Every run's student against its ceiling, its teacher with the rule; "" where all methods have the same one."""
    enhanced = any("enhanced_with_rule" in systems for cell in cells for systems in cell["splits"].values())
    if agree(cells, "base_with_rule") and not enhanced:
        return ""
    splits = list(dict.fromkeys(split for cell in cells for split in cell["splits"] if split != RETAIN))
    colours = colours_of(cell["method"] for cell in cells)
    points: dict[str, dict[str, list[tuple[float, float]]]] = {split: {} for split in splits}
    for cell in cells:
        for split in splits:
            systems = cell["splits"].get(split, {})
            ceiling = "enhanced_with_rule" if "enhanced_with_rule" in systems else "base_with_rule"
            if {ceiling, "student"} <= systems.keys():
                pair = tuple(systems[name][metric_of(systems[name])] for name in (ceiling, "student"))
                if None not in pair:
                    points[split].setdefault(cell["method"], []).append(pair)

    def paint(axes: Sequence[Any]) -> None:
        for axis, (split, groups) in zip(axes, points.items(), strict=True):
            axis.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
            for method, found in groups.items():
                axis.scatter(*zip(*found, strict=True), color=colours[method], label=label(method), s=28, alpha=0.8)
            axis.set_title(label(split))
            axis.set_xlabel("teacher with rule (ceiling)")
            axis.set_xlim(0, 1.03)
            axis.set_ylim(0, 1.03)
        axes[0].set_ylabel("student")
        axes[0].legend(fontsize=8)

    return draw(len(points), paint, height=3.6)


def sweep_curves(workdir: pathlib.Path, cells: Sequence[Cell]) -> str:
    """The students' training loss over updates, a panel a k, the mean over seeds."""
    ks = sorted({cell["k"] for cell in cells})
    colours = colours_of(cell["method"] for cell in cells)
    curves: dict[tuple[int, str], dict[int, list[float]]] = {}
    for cell in cells:
        for line in read_lines(run_folder(workdir, cell["method"], cell["k"], cell["seed"]) / "metrics.jsonl"):
            if line["stage"] == "student":
                points = curves.setdefault((cell["k"], cell["method"]), {})
                points.setdefault(line["step"], []).append(line["loss"])

    def paint(axes: Sequence[Any]) -> None:
        for axis, k in zip(axes, ks, strict=True):
            for (own_k, method), points in curves.items():
                if own_k == k:
                    means = [statistics.mean(losses) for losses in points.values()]
                    axis.plot(list(points), means, color=colours[method], label=label(method))
            axis.set_title(f"k = {k}")
            axis.set_xlabel("updates")
            axis.set_yscale("log")
        axes[0].set_ylabel("training loss (each method's own)")
        axes[-1].legend(fontsize=8)

    return draw(len(ks), paint) if curves else ""


def sweep_hidden(cells: Sequence[Cell]) -> str:
    """The distance from the teacher's hidden states at every layer and k, mean over seeds, on the first test split."""
    split = next(split for cell in cells for split in cell["splits"])
    ks = sorted({cell["k"] for cell in cells})
    colours = colours_of(cell["method"] for cell in cells)

    def paint(axes: Sequence[Any]) -> None:
        for axis, k in zip(axes, ks, strict=True):
            groups: dict[tuple[str, str], list[Sequence[float]]] = {}
            for cell in cells:
                for system in ("base", "student"):
                    layers = cell.get("hidden_distance", {}).get(split, {}).get(system)
                    if layers and cell["k"] == k:
                        groups.setdefault((cell["method"], system), []).append(layers)
            for (method, system), runs in groups.items():
                means = [statistics.mean(layer) for layer in zip(*runs, strict=True)]
                line = (
                    {"linestyle": ":"} if system == "base" else {"marker": "o", "markersize": 4, "label": label(method)}
                )
                axis.plot(means, color=colours[method], **line)
            axis.set_title(f"{label(split)}, k = {k}")
            axis.set_xlabel("input of block")
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel(r"$||u_t - u_s||^2$")
        axes[0].legend(fontsize=8)

    return draw(len(ks), paint)


def sweep_outputs(workdir: pathlib.Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Outputs side by side of every method: its first seed at the largest k, the first split."""
    shown = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        cell = max((cell for cell in cells if cell["method"] == method), key=lambda cell: cell["k"])
        split = next(iter(cell["splits"]), None)
        if split is not None:
            where = f"{label(method)}, k = {cell['k']}, seed {cell['seed']}"
            predictions = read_predictions(
                run_folder(workdir, cell["method"], cell["k"], cell["seed"]), {split: cell["splits"][split]}
            )
            shown += side_by_side(predictions, SHOWN_ROWS, where) if any(predictions[split].values()) else []
    return shown


def agree(cells: Sequence[Cell], system: str) -> bool:
    """Whether a system answers alike under all methods: as the base does that all of them share."""
    said: dict[tuple[int, int], list[Any]] = {}
    for cell in cells:
        scores = {split: own[system] for split, own in cell["splits"].items() if system in own}
        if scores:
            said.setdefault((cell["k"], cell["seed"]), []).append(scores)
    return all(scores == own[0] for own in said.values() for scores in own)


class Table(NamedTuple):
    """Text cells: one head, and rows as long as it."""

    head: list[str]
    rows: list[list[str]]


def sweep_table(cells: Sequence[Cell]) -> Table:
    """For each k the systems and the methods' students: the mean over seeds and its range, a column a split.

    A system on which all methods agree (the base, its ceiling) has one row, else one for each method.
    """
    splits = list(dict.fromkeys(split for cell in cells for split in cell["splits"]))
    systems = list(dict.fromkeys(system for cell in cells for own in cell["splits"].values() for system in own))
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    asked = {split: scores for cell in cells for split, own in cell["splits"].items() for scores in own.values()}
    # (split, metric, digits) of every column; what a split is judged by comes first.
    columns = [(split, metric_of(asked[split]), 2) for split in splits]
    columns += [(split, "gap_closed", 2) for split in splits if split != RETAIN]
    columns += [(RETAIN, "kl_from_base", 3)] if RETAIN in splits else []
    columns += [(split, "mean_response_tokens", 1) for split in splits if split != RETAIN]
    columns = list(dict.fromkeys(column for column in columns if column[:2] != (RETAIN, "gap_closed")))

    def row(k: int, name: str, system: str, method: str | None) -> list[str] | None:
        mine = [cell for cell in cells if cell["k"] == k and method in (None, cell["method"])]
        # Of methods that agree, one run a seed.
        runs = {cell["seed"]: cell["splits"] for cell in mine if any(system in own for own in cell["splits"].values())}
        if not runs:
            return None
        values = [
            spread([own.get(split, {}).get(system, {}).get(metric) for own in runs.values()], digits)
            for split, metric, digits in columns
        ]
        return [str(k), name, str(len(runs)), *values]

    shared = {system for system in systems if system != "student" and agree(cells, system)}
    rows = []
    for k in sorted({cell["k"] for cell in cells}):
        for system in sorted(systems, key="student".__eq__):
            if system in shared:
                rows.append(row(k, label(system), system, None))
            else:
                rows += [row(k, f"{label(system)}, {label(method)}", system, method) for method in methods]
    head = ["k", "system", "seeds", *(f"{label(split)}: {label(metric)}" for split, metric, _ in columns)]
    return Table(head, [made for made in rows if made])


def sweep_page(workdir: pathlib.Path) -> dict[str, Any]:
    """What the template shows of a sweep."""
    record, summary = read_json(workdir / "config.json"), read_json(workdir / "sweep.json")
    cells, config = summary["cells"], record["config"]
    figures = {"curves": sweep_curves(workdir, cells)}
    evaluated = any(cell["splits"] for cell in cells)
    if evaluated:
        figures |= {"sweep": sweep_figure(cells), "ceiling": ceiling_figure(cells), "hidden": sweep_hidden(cells)}
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
        "table": sweep_table(cells) if evaluated else None,
        # Those of the most samples: there are as many labelled outputs.
        "judge_errors": max(cells, key=lambda cell: cell["k"]).get("judge_errors", {}) if cells else {},
        "failed": summary["failed"],
        "outputs": sweep_outputs(workdir, cells),
        "figures": figures,
        "record": record,
        "config": json.dumps(config, indent=2),
    }
