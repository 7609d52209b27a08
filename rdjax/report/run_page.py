"""Builds the page of one run: figures of scores, losses, hidden states and lengths, and outputs side by side."""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdjax.config import ROUND
from rdjax.data.splits import is_retained
from rdjax.evaluation.results import GAP_CLOSED, split_metrics
from rdjax.evaluation.verdict import advice, verdict
from rdjax.report.figures import COLOURS, colours_of, draw, label
from rdjax.storage.metrics import METRICS, read_metrics
from rdjax.storage.records import Prediction, Results, RunRecord, read_record, read_records
from rdjax.storage.workdir import PREDICTIONS, RECORD, RESULTS

MOST_PANELS = 6  # splits of a figure that has a panel for each
OUTPUT_ROWS = 50  # outputs of a split that the page shows; all are in predictions/

Predictions = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # records by split and system


def scores_figure(splits: Mapping[str, Mapping[str, Mapping[str, float]]], metrics: Mapping[str, str]) -> str:
    """Draws a bar for each system on every split.

    Args:
      splits: scores by split and system.
      metrics: the name of each split's metric.
    """
    colours = colours_of(system for systems in splits.values() for system in systems)

    def paint(axes: Sequence[Any]) -> None:
        for axis, (split, systems) in zip(axes, splits.items(), strict=True):
            values = [scores.get(metrics[split]) for scores in systems.values()]
            heights = [value or 0 for value in values]
            bars = axis.bar(range(len(systems)), heights, color=[colours[s] for s in systems])
            axis.bar_label(bars, labels=["-" if value is None else f"{value:.2f}" for value in values], padding=2)
            axis.set_xticks(range(len(systems)), map(label, systems), rotation=30, ha="right")
            axis.set_ylim(min(0, *heights), 1.12 * max(1, *heights))
            axis.set_title(f"{label(split)}: {label(metrics[split])}")

    return draw(len(splits), paint)


def rules_figure(splits: Mapping[str, Mapping[str, Mapping[str, float]]], metrics: Mapping[str, str]) -> str:
    """Draws the scores of many splits, a line for each with a dot for every system."""
    systems = list(dict.fromkeys(system for own in splits.values() for system in own))
    colours, names = colours_of(systems), list(splits)

    def paint(axes: Sequence[Any]) -> None:
        (axis,) = axes
        for number, system in enumerate(systems):
            values = [splits[split].get(system, {}).get(metrics[split]) for split in names]
            points = [(value, row) for row, value in enumerate(values) if value is not None]
            # Equal scores stay visible one above the other.
            shift = 0.5 * (number + 0.5) / len(systems) - 0.25
            if points:
                scores, rows = zip(*points, strict=True)
                axis.scatter(scores, [row + shift for row in rows], color=colours[system], label=label(system), s=22)
        axis.set_yticks(range(len(names)), [f"{label(split)}: {label(metrics[split])}" for split in names])
        axis.invert_yaxis()
        axis.set_xlabel("score")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6 / len(names) - 0.06), ncols=len(systems))

    return draw(1, paint, height=1.4 + 0.3 * len(names), width=8.0)


def hardest_splits(splits: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Returns the splits of a figure with a panel for each: all of a few, else those with the least gap closed."""

    def closed(split: str) -> float:
        value = splits[split].get("student", {}).get(GAP_CLOSED)
        return 1.0 if value is None else value

    return list(splits) if len(splits) <= MOST_PANELS else sorted(splits, key=closed)[:MOST_PANELS]


def curves_figure(lines: Sequence[Mapping[str, Any]]) -> str:
    """Draws the training and validation loss of every stage over its updates; rounds of practice make one curve."""
    stages: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    ends: dict[str, int] = {}  # the last update of each round
    for line in lines:
        if "loss" in line or "valid_loss" in line:
            stage, step = line["stage"], line["step"]
            if stage.startswith(ROUND):
                ends[stage] = step
                stage, step = "practice", sum(ends.values())
            stages[stage].append({**line, "step": step})

    def paint(axes: Sequence[Any]) -> None:
        for axis, (stage, points) in zip(axes, stages.items(), strict=True):
            for name, colour in (("loss", "#0072B2"), ("valid_loss", "#D55E00")):
                line = [(point["step"], point[name]) for point in points if name in point]
                if line:
                    axis.plot(*zip(*line, strict=True), color=colour, label=label(name))
            axis.set_title(label(stage))
            axis.set_xlabel("updates")
            axis.set_yscale("log")
            axis.legend()

    return draw(len(stages), paint) if stages else ""


def hidden_figure(hidden: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draws the distance from the teacher's hidden states at every block, before training (base) and after."""

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
    """Draws how long the systems' responses are, in tokens."""
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
    """Reads the records of every split and system that a run evaluated."""
    folder = workdir / PREDICTIONS
    return {
        split: {system: read_records(folder / f"{split}.{system}.jsonl", Prediction) for system in systems}
        for split, systems in splits.items()
    }


def side_by_side(predictions: Predictions, most: int, where: str = "") -> list[dict[str, Any]]:
    """Returns what base, base with rule and student answer to the same inputs, the student's failures first.

    Args:
      most: the number of rows per split.
      where: names the run of a sweep, in the title.
    """
    parts = []
    for split, systems in predictions.items():
        names = [name for name in ("base", "base_with_rule", "student") if name in systems] or list(systems)
        leading = names[-1]
        order = sorted(range(len(systems[leading])), key=lambda row: systems[leading][row]["correct"] is True)
        rows = []
        for number in order[:most]:
            records = [systems[name][number] for name in names]
            answers = [{"text": record["response"], "correct": record["correct"]} for record in records]
            rows.append({"input": records[0]["input"], "gold": records[0]["gold"], "answers": answers})
        verdicts = [record["correct"] for record in systems[leading]]
        failures = None if None in verdicts else verdicts.count(False)
        parts.append(
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
    return parts


def run_page(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what the template shows of a run."""
    record, results = read_record(workdir / RECORD, RunRecord), read_record(workdir / RESULTS, Results)
    splits, metrics = results["splits"], split_metrics(results)
    predictions = read_predictions(workdir, splits)
    lines = read_metrics(workdir / METRICS)
    config = record["config"]
    tests = {split: systems for split, systems in splits.items() if not is_retained(split)}
    gap = next((line["kl"] for line in lines if line["stage"] == "gap"), None)
    trained = "rdjax.evaluate" not in record["command"]
    title = label(config["method"]) if trained else "evaluation"
    of_training = {
        "method": config["method"],
        "k": config["task"]["k"] or "all",
        "seed": config["seed"],
        "gap to close": "-" if gap is None else f"{gap:.3f} nats per token",
    }
    figures = {"curves": curves_figure(lines)}
    if splits:
        scores, panels = scores_figure if len(splits) <= MOST_PANELS else rules_figure, hardest_splits(splits)
        figures["scores"] = scores(splits, metrics)
        figures["lengths"] = lengths_figure({split: predictions[split] for split in panels})
        hidden = results["hidden_distance"]
        figures["hidden"] = hidden_figure({split: hidden[split] for split in panels if split in hidden})
    return {
        "kind": "run",
        "title": f"{title} on {config['task']['name']}" + (f", k = {of_training['k']}" if trained else ""),
        "facts": {
            "model": config["model"]["path"],
            "task": config["task"]["name"],
            **(of_training if trained else {}),
        },
        "rule": results.get("rule") or _rule(predictions),
        "verdict": verdict(results),
        "advice": advice(results, lines, config),
        "flips": {split: rates for split, rates in results.get("flips", {}).items() if not is_retained(split)},
        "tests": tests,
        "retained": {split: systems for split, systems in splits.items() if is_retained(split)},
        "splits": splits,
        "metrics": metrics,
        "judge_errors": results.get("judge_errors", {}),
        "figures": figures,
        "outputs": side_by_side(predictions, OUTPUT_ROWS),
        "record": record,
        "config": json.dumps(config, indent=2),
    }


def _rule(predictions: Predictions) -> str:
    """Returns the rule: what the prompt of the base with rule contains and that of the base does not."""
    for systems in predictions.values():
        if systems.get("base") and systems.get("base_with_rule"):
            plain, with_rule = systems["base"][0]["prompt"], systems["base_with_rule"][0]["prompt"]
            start = _common_prefix(plain, with_rule)
            end = _common_prefix(plain[start:][::-1], with_rule[start:][::-1])
            return with_rule[start : len(with_rule) - end].strip()
    return ""


def _common_prefix(one: str, other: str) -> int:
    """Returns the number of characters that two texts have in common at their start."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
