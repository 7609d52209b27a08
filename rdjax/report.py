"""One self-contained page for a run or a sweep: `python -m rdjax.report --workdir=runs/quickstart`."""

import collections
import hashlib
import io
import itertools
import json
import pathlib
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
import matplotlib.figure

from rdjax import cli, experiment_flags
from rdjax.errors import UserError

PAGE = "report.html"
TEMPLATE = pathlib.Path(__file__).parent / "assets" / "report.html.jinja"
SHOWN_ROWS = 50  # outputs of a split that the page of a run shows; the rest stay in predictions/
SHOWN_SWEEP_ROWS = 8  # the same of each method on the page of a sweep

Predictions = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # records by split and system

# Okabe and Ito's colours, which people who confuse red and green can tell apart.
COLOURS = {
    "base": "#999999",
    "base_with_rule": "#000000",
    "student": "#0072B2",
    "student_with_rule": "#56B4E9",
    "enhanced_with_rule": "#E69F00",
    "rule_distill_base": "#0072B2",
    "rule_distill_enhanced": "#009E73",
    "inst_tune_without_rule": "#D55E00",
    "inst_tune_with_rule": "#CC79A7",
}
SPARE_COLOURS = (
    "#8B5A2B", "#7B3294", "#B8A800", "#4D4D4D", "#1B7837", "#E7298A", "#08519C", "#A6761D", "#66A61E", "#6A51A3",
    "#CB181D", "#35978F", "#DD1C77", "#525252", "#993404", "#2B8CBE", "#41AB5D", "#807DBA",
)  # fmt: skip
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rdjax",  # the same figure every time
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for every system, method or variant."""
    spare = itertools.cycle(SPARE_COLOURS)
    return {name: COLOURS.get(name) or next(spare) for name in dict.fromkeys(names)}


def draw(panels: int, paint: Callable[[Sequence[Any]], None], height: float = 3.2) -> str:
    """An SVG of some panels side by side."""
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(max(4.6, 3.6 * panels), height), layout="constrained")
        paint(figure.subplots(1, panels, squeeze=False)[0])
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    # A figure scales with the page and never past its own size.
    width = re.search(r'width="([\d.]+)pt"', svg).group(1)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", svg, count=1)
    size = f"width:100%;max-width:{width}pt;min-width:{15 * panels}rem"
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', rf'\1 style="{size}"', svg, count=1)
    # Ids would clash between the figures of one page.
    prefix = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}"
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)


def metric_of(scores: Mapping[str, Any]) -> str:
    """The metric of a split: its judge's, or the gap closed where there is none."""
    return next(iter(scores))


def label(name: str) -> str:
    return name.replace("_", " ")


# A run ------------------------------------------------------------------------------------------------------------


def scores_figure(splits: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A bar a system for every split."""
    colours = colours_of(system for systems in splits.values() for system in systems)

    def paint(axes: Sequence[Any]) -> None:
        for axis, (split, systems) in zip(axes, splits.items(), strict=True):
            metric = metric_of(next(iter(systems.values())))
            values = [scores[metric] for scores in systems.values()]
            bars = axis.bar(range(len(systems)), [value or 0 for value in values], color=[colours[s] for s in systems])
            axis.bar_label(bars, labels=["-" if value is None else f"{value:.2f}" for value in values], padding=2)
            axis.set_xticks(range(len(systems)), map(label, systems), rotation=30, ha="right")
            axis.set_ylim(min(0, *(value or 0 for value in values)), 1.12)
            axis.set_title(f"{label(split)}: {label(metric)}")

    return draw(len(splits), paint)


def curves_figure(lines: Sequence[Mapping[str, Any]]) -> str:
    """Training and validation loss of every stage over its updates."""
    stages: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for line in lines:
        if "loss" in line:
            stages[line["stage"]].append(line)

    def paint(axes: Sequence[Any]) -> None:
        for axis, (stage, points) in zip(axes, stages.items(), strict=True):
            for name, colour in (("loss", "#0072B2"), ("valid_loss", "#D55E00")):
                drawn = [(point["step"], point[name]) for point in points if name in point]
                if drawn:
                    axis.plot(*zip(*drawn, strict=True), color=colour, label=label(name))
            axis.set_title(label(stage))
            axis.set_xlabel("updates")
            axis.set_yscale("log")
            axis.legend()

    return draw(len(stages), paint) if stages else ""


def hidden_figure(hidden: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The distance from the teacher's hidden states at every layer, before training (base) and after."""

    def paint(axes: Sequence[Any]) -> None:
        for axis, (split, systems) in zip(axes, hidden.items(), strict=True):
            for system in ("base", "student"):
                if system in systems:
                    name = "before" if system == "base" else "after"
                    axis.plot(systems[system], marker="o", markersize=4, color=COLOURS[system], label=name)
            axis.set_title(label(split))
            axis.set_xlabel("input of block")
            axis.set_ylim(bottom=0)
            axis.legend()
        axes[0].set_ylabel(r"$||u_t - u_s||^2$")

    return draw(len(hidden), paint)


def lengths_figure(predictions: Predictions) -> str:
    """How long the systems' responses are, in tokens."""
    colours = colours_of(system for systems in predictions.values() for system in systems)

    def paint(axes: Sequence[Any]) -> None:
        for axis, (split, systems) in zip(axes, predictions.items(), strict=True):
            lengths = [[len(record["ids"]) for record in records] for records in systems.values()]
            boxes = axis.boxplot(lengths, orientation="horizontal", patch_artist=True, widths=0.6)
            for box, system in zip(boxes["boxes"], systems, strict=True):
                box.set(facecolor=colours[system], alpha=0.6)
            for median in boxes["medians"]:
                median.set(color="black")
            axis.set_yticks(range(1, len(systems) + 1), map(label, systems))
            axis.invert_yaxis()
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_xlabel("tokens")
            axis.set_title(label(split))

    return draw(len(predictions), paint, height=2.6)


def read_predictions(workdir: pathlib.Path, splits: Mapping[str, Mapping[str, Any]]) -> Predictions:
    """The records of every split and system that a run evaluated."""
    folder = workdir / "predictions"
    return {
        split: {system: _read_lines(folder / f"{split}.{system}.jsonl") for system in systems}
        for split, systems in splits.items()
    }


def side_by_side(predictions: Predictions, most: int, where: str = "") -> list[dict[str, Any]]:
    """What base, base with rule and student answer to the same inputs, the student's failures first.

    Args:
      most: rows of a split.
      where: from which run of a sweep they are.
    """
    shown = []
    for split, systems in predictions.items():
        names = [name for name in ("base", "base_with_rule", "student") if name in systems] or list(systems)
        leading = names[-1]
        order = sorted(range(len(systems[leading])), key=lambda at: systems[leading][at]["correct"] is True)
        rows = []
        for at in order[:most]:
            records = [systems[name][at] for name in names]
            answers = [{"text": record["response"], "correct": record["correct"]} for record in records]
            rows.append({"input": records[0]["input"], "gold": records[0]["gold"], "answers": answers})
        verdicts = [record["correct"] for record in systems[leading]]
        failures = None if None in verdicts else verdicts.count(False)
        shown.append(
            {
                "where": where,
                "split": split,
                "systems": names,
                "rows": rows,
                "total": len(order),
                "failures": failures,
                "of": leading,
            }
        )
    return shown


def run_page(workdir: pathlib.Path) -> dict[str, Any]:
    """What the template shows of a run."""
    record, scores = _read(workdir / "config.json"), _read(workdir / "eval.json")
    splits = scores["splits"]
    predictions = read_predictions(workdir, splits)
    lines = _read_lines(workdir / "metrics.jsonl")
    config = record["config"]
    tests = {split: systems for split, systems in splits.items() if split != "retain"}
    gap = next((line["kl"] for line in lines if line["stage"] == "gap"), None)
    figures = {"curves": curves_figure(lines)}
    if splits:
        figures |= {"scores": scores_figure(splits), "lengths": lengths_figure(predictions)}
        figures["hidden"] = hidden_figure(scores["hidden_distance"])
    return {
        "kind": "run",
        "title": f"{label(config['method'])} on {config['task']['name']}, k = {config['task']['k'] or 'all'}",
        "facts": {
            "method": config["method"],
            "model": config["model"]["path"],
            "task": config["task"]["name"],
            "k": config["task"]["k"] or "all",
            "seed": config["seed"],
            "gap to close": "-" if gap is None else f"{gap:.3f} nats a token",
        },
        "rule": _rule(predictions),
        "tests": tests,
        "retain": splits.get("retain"),
        "splits": splits,
        "judge_errors": scores.get("judge_errors", {}),
        "figures": figures,
        "outputs": side_by_side(predictions, SHOWN_ROWS),
        "record": record,
        "config": json.dumps(config, indent=2),
    }


def _rule(predictions: Predictions) -> str:
    """What the prompt of the base with rule has that the base's has not."""
    for systems in predictions.values():
        if systems.get("base") and systems.get("base_with_rule"):
            plain, ruled = systems["base"][0]["prompt"], systems["base_with_rule"][0]["prompt"]
            start = _common(plain, ruled)
            end = _common(plain[start:][::-1], ruled[start:][::-1])
            return ruled[start : len(ruled) - end].strip()
    return ""


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


# A sweep ----------------------------------------------------------------------------------------------------------


def sweep_figure(cells: Sequence[Mapping[str, Any]]) -> str:
    """The student's score against k on every split: mean over seeds, band from lowest to highest; ceiling and base."""
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    splits = list(dict.fromkeys(split for cell in cells for split in cell["splits"]))
    colours = colours_of(methods)
    ks = sorted({cell["k"] for cell in cells})

    def values(split: str, system: str, k: int, method: str) -> list[float]:
        found = []
        for cell in cells:
            scores = cell["splits"].get(split, {}).get(system)
            if scores and (cell["k"], cell["method"]) == (k, method):
                found.append(scores[metric_of(scores)])
        return [value for value in found if value is not None]

    def band(axis: Any, split: str, method: str, color: str, label: str) -> None:
        points = [(k, found) for k in ks if (found := values(split, "student", k, method))]
        at = [k for k, _ in points]
        means = [statistics.mean(found) for _, found in points]
        axis.plot(at, means, color=color, label=label, marker="o", markersize=4)
        low, high = [min(found) for _, found in points], [max(found) for _, found in points]
        axis.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)

    def paint(axes: Sequence[Any]) -> None:
        for axis, split in zip(axes, splits, strict=True):
            for system, line in (("base_with_rule", "--"), ("base", ":")):
                # One line where all methods have the same base; a line each where rule, task or model differ.
                found = {method: [values(split, system, k, method) for k in ks] for method in methods}
                known = {method: scores for method, scores in found.items() if any(scores)}
                shared = all(scores == next(iter(known.values())) for scores in known.values())
                for method in list(known)[: 1 if shared else None]:
                    at = [k for k, scores in zip(ks, known[method], strict=True) if scores]
                    means = [statistics.mean(scores) for scores in known[method] if scores]
                    axis.plot(at, means, color="black" if shared else colours[method], linestyle=line)
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


def sweep_curves(workdir: pathlib.Path, cells: Sequence[Mapping[str, Any]]) -> str:
    """The students' training loss over updates, a panel a k, the mean over seeds."""
    ks = sorted({cell["k"] for cell in cells})
    colours = colours_of(cell["method"] for cell in cells)
    curves: dict[tuple[int, str], dict[int, list[float]]] = {}
    for cell in cells:
        for line in _read_lines(_run_folder(workdir, cell) / "metrics.jsonl"):
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


def sweep_hidden(cells: Sequence[Mapping[str, Any]]) -> str:
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


def sweep_outputs(workdir: pathlib.Path, cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Outputs side by side of every method: its first seed at the largest k, the first split."""
    shown = []
    for method in dict.fromkeys(cell["method"] for cell in cells):
        cell = max((cell for cell in cells if cell["method"] == method), key=lambda cell: cell["k"])
        split = next(iter(cell["splits"]), None)
        if split is not None:
            where = f"{label(method)}, k = {cell['k']}, seed {cell['seed']}"
            predictions = read_predictions(_run_folder(workdir, cell), {split: cell["splits"][split]})
            shown += side_by_side(predictions, SHOWN_SWEEP_ROWS, where) if any(predictions[split].values()) else []
    return shown


def _run_folder(workdir: pathlib.Path, cell: Mapping[str, Any]) -> pathlib.Path:
    return workdir / "cells" / f"{cell['method']}_k{cell['k']}" / f"seed{cell['seed']}"


def sweep_rows(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of a sweep: for each method, k and system the mean over seeds and its range, a column a split."""
    splits = list(dict.fromkeys(split for cell in cells for split in cell["splits"]))
    systems = list(dict.fromkeys(system for cell in cells for split in cell["splits"].values() for system in split))
    rows = []
    for method, k in dict.fromkeys((cell["method"], cell["k"]) for cell in cells):
        mine = [cell for cell in cells if (cell["method"], cell["k"]) == (method, k)]
        for system in systems:
            columns = []
            for split in splits:
                scored = [cell["splits"][split][system] for cell in mine if system in cell["splits"].get(split, {})]
                columns.append(spread([scores[metric_of(scores)] for scores in scored]))
            kept = [cell["splits"].get("retain", {}).get(system, {}) for cell in mine]
            first = [cell["splits"][splits[0]].get(system) for cell in mine if splits[0] in cell["splits"]]
            rows.append(
                {
                    "method": method,
                    "k": k,
                    "system": system,
                    "seeds": len(mine),
                    "columns": columns,
                    "forgotten": spread([scores.get("kl_from_base") for scores in kept]),
                    "tokens": spread([scores["mean_response_tokens"] for scores in first if scores]),
                }
            )
    return {"splits": splits, "rows": rows}


def spread(values: Sequence[float | None]) -> str:
    """Mean and range."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.2f}-{max(known):.2f})"


def sweep_page(workdir: pathlib.Path) -> dict[str, Any]:
    """What the template shows of a sweep."""
    record, summary = _read(workdir / "config.json"), _read(workdir / "sweep.json")
    cells, config = summary["cells"], record["config"]
    figures = {}
    evaluated = any(cell["splits"] for cell in cells)
    if evaluated:
        figures = {"sweep": sweep_figure(cells), "curves": sweep_curves(workdir, cells), "hidden": sweep_hidden(cells)}
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
        "table": sweep_rows(cells) if evaluated else None,
        "failed": summary["failed"],
        "outputs": sweep_outputs(workdir, cells),
        "figures": figures,
        "record": record,
        "config": json.dumps(config, indent=2),
    }


# Either -----------------------------------------------------------------------------------------------------------


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from None


def _read_lines(path: pathlib.Path) -> list[Any]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes `<workdir>/report.html` for the finished run or the sweep that lies there.

    Raises:
      UserError: neither lies there.
    """
    if (workdir / "sweep.json").exists():
        page = sweep_page(workdir)
    elif (workdir / "eval.json").exists():
        page = run_page(workdir)
    else:
        raise UserError(f"--workdir: {workdir} holds neither eval.json (a finished run) nor sweep.json (a sweep)")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"label": label, "metric_of": metric_of}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    path = workdir / PAGE
    beside = path.with_suffix(".part")
    beside.write_text(template.render(**page), encoding="utf-8")
    beside.replace(path)
    return path


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    print(f"wrote {write_report(experiment_flags.workdir())}")


if __name__ == "__main__":
    cli.run(main)
