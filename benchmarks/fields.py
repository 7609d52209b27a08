"""Distils rules of five fields in a real model: `python -m benchmarks.fields --model=<folder> --out=runs/fields`.

The rules of field_rules.py: units of length, a tax, a chemical reaction, a sled's motion, and a clause with exceptions.
Each has 64 training questions with answers, of all depths of composition, and tests of every depth; answers are right
if they are exact. The teacher is tuned with the rule (`rule_distill_enhanced`), since small models hardly follow such
rules as they are. The table and the figure have how often each system is right.
"""

import json
import pathlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags
from tabulate import tabulate

from benchmarks.field_rules import DEPTHS, FIELDS, Question, questions
from benchmarks.rule_runs import seconds, write_rows, write_rule
from rdjax.report.figures import COLOURS, draw, label, spread

_MODEL = flags.DEFINE_string("model", None, "Folder or hub id of the model.", required=True)
_OUT = flags.DEFINE_string("out", "runs/fields", "Folder of the tasks and their runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every rule, each with questions of its own.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", "", "A JSON file that gets all scores, too.")
_FIGURE = flags.DEFINE_string("figure", "", "An SVG file that gets the figure.")

TRAIN, TESTS = 64, 24  # questions of a rule, and of a test
SYSTEMS = ("base", "base_with_rule", "enhanced_with_rule", "student", "inst_tune_without_rule")
SETTINGS = (
    "method=rule_distill_enhanced",
    "task.responses=gold",
    "task.inputs=file",
    "train.updates=60",
    "train.valid_every=0",
    "task.hold_out=0.0",
    "eval.max_new_tokens=12",
    f"eval.systems={SYSTEMS!r}",
    "eval.gap_rows=0",
    "loss.retain_weight=0.0",
)

Scores = dict[tuple[str, int], dict[str, list[float]]]  # by field and depth, of each system on every seed


def write_tasks(root: pathlib.Path, seed: int) -> None:
    """Writes the folder of every field's rule, with tests that no training question repeats."""
    for name, field in FIELDS.items():
        rng, taken, folder = random.Random(f"{name} {seed}"), set(), root / "rules" / name
        write_rule(folder, field.rule)
        train: list[Question] = []
        for depth in DEPTHS:
            train += questions(field, rng, depth, TRAIN * depth // len(DEPTHS) - len(train), taken)
            tests = questions(field, rng, depth, TESTS, taken)
            write_rows(folder / f"test_{depth}.jsonl", (question._asdict() for question in tests))
        write_rows(folder / "train.jsonl", (question._asdict() for question in train))


def train_seed(model: str, out: pathlib.Path, seed: int) -> dict[str, Any]:
    """Trains an adapter for each rule; returns the scores of all of them."""
    root, workdir = out / "tasks" / str(seed), out / str(seed)
    write_tasks(root, seed)
    settings = [f"model.path={model}", f"task.root={root}", f"seed={seed}", *SETTINGS]
    arguments = [f"--config.{setting}" for setting in settings]
    took = seconds("rdjax.train_each", "--config=configs/rule.py", f"--workdir={workdir}", "--together=1", *arguments)
    print(f"seed {seed}: {took / 60:.1f} minutes", flush=True)
    return json.loads((workdir / "summary.json").read_text())


def scores_of(results: Sequence[dict[str, Any]]) -> Scores:
    """Returns how often every system is right, on each test and seed."""
    return {
        (field, depth): {
            system: [result["splits"][f"{field}/test_{depth}"][system]["exact_match"] for result in results]
            for system in SYSTEMS
        }
        for field in FIELDS
        for depth in DEPTHS
    }


def figure(scores: Scores) -> str:
    """Draws the means against the depth, a panel for each field; returns an SVG."""

    def paint(axes: Sequence[Any]) -> None:
        for axis, field in zip(axes, FIELDS, strict=True):
            for system in SYSTEMS:
                means = [np.mean(scores[field, depth][system]) for depth in DEPTHS]
                axis.plot(DEPTHS, means, marker="o", color=COLOURS[system], label=label(system))
            axis.set_title(field)
            axis.set_xticks(DEPTHS)
            axis.set_xlabel("steps of the rule")
            axis.set_ylim(-0.03, 1.03)
        axes[0].set_ylabel("right answers")
        axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))

    return draw(len(FIELDS), paint, height=2.8, width=2.5)


def main(argv: list[str]) -> None:
    """Trains all rules, and prints the table."""
    del argv
    out = pathlib.Path(_OUT.value)
    results = [train_seed(_MODEL.value, out, seed) for seed in range(_SEEDS.value)]
    scores = scores_of(results)
    rows = [
        {"rule": field, "steps": depth} | {label(system): spread(values) for system, values in systems.items()}
        for (field, depth), systems in scores.items()
    ]
    print(tabulate(rows, headers="keys", tablefmt="github"))
    if _RESULTS.value:
        named = {f"{field}/{depth}": systems for (field, depth), systems in scores.items()}
        pathlib.Path(_RESULTS.value).write_text(json.dumps(named, indent=1) + "\n")
    if _FIGURE.value:
        pathlib.Path(_FIGURE.value).write_text(figure(scores))


if __name__ == "__main__":
    app.run(main)
