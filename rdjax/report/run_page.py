"""What the report of one run shows."""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdjax.config import RETAIN
from rdjax.report.figures import COLOURS, colours_of, draw, label, metric_of
from rdjax.storage.files import read_json, read_lines

SHOWN_ROWS = 50  # outputs of a split that the page shows; the rest stay in predictions/

Predictions = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # records by split and system


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
        split: {system: read_lines(folder / f"{split}.{system}.jsonl") for system in systems}
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
    record, scores = read_json(workdir / "config.json"), read_json(workdir / "eval.json")
    splits = scores["splits"]
    predictions = read_predictions(workdir, splits)
    lines = read_lines(workdir / "metrics.jsonl")
    config = record["config"]
    tests = {split: systems for split, systems in splits.items() if split != RETAIN}
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
        "retain": splits.get(RETAIN),
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
