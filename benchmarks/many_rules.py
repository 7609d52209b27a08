"""Trains one adapter on several arithmetic rules: `python -m benchmarks.many_rules --out=runs/many_rules`.

Every rule has a symbol of its own, eight training samples (--samples) with the operands of all other rules' samples,
and a folder in rules/; plain sums are what none of them is about. The model is the embedded one; `SETTINGS` is what
differs from the defaults. The table has, for each number of rules and over seeds: how often the student follows each
rule without reading it, over how often the base does that reads it (in distribution: operands to 99), the worst of the
rules, plain sums before and after, and the leakage: how often the answer to a rule's question is what another of the
rules would give. With --alone, each of the rules is also trained alone, and a line has the difference. --figure draws
which rule's answers are given to which rule's questions. docs/study_rules.md shows both.
"""

import json
import pathlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags
from tabulate import tabulate

from benchmarks.rule_runs import must_train, write_questions, write_rule
from rdjax.data.rules.arithmetic import PLAIN_ADDITION, Rule, distinct_operands
from rdjax.report.figures import draw, label, spread

_OUT = flags.DEFINE_string("out", "runs/many_rules", "Folder of the tasks and their runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every number of rules.", lower_bound=1)
_SIZES = flags.DEFINE_list("sizes", ["2", "4", "8", "16"], "Numbers of rules.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "Training samples of every rule.", lower_bound=1)
_UPDATES = flags.DEFINE_integer("updates", 1200, "Updates of every adapter.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", "", "A JSON file that gets the scores of every rule.")
_FIGURE = flags.DEFINE_string("figure", "", "An SVG file that gets the figure, of the largest number of rules.")
_ALONE = flags.DEFINE_bool("alone", False, "Also train every rule of the largest number alone.")

RULES = {
    "sum_3": Rule("sum", 3, "&"),
    "larger_6": Rule("larger", 6, "%"),
    "difference_4": Rule("difference", 4, "#"),
    "first_7": Rule("first", 7, "~"),
    "smaller_2": Rule("smaller", 2, "@"),
    "second_5": Rule("second", 5, "$"),
    "sum_8": Rule("sum", 8, "^"),
    "larger_1": Rule("larger", 1, "!"),
    "difference_9": Rule("difference", 9, "*"),
    "first_2": Rule("first", 2, "|"),
    "smaller_7": Rule("smaller", 7, "<"),
    "second_9": Rule("second", 9, ">"),
    "sum_5": Rule("sum", 5, "@@"),
    "larger_4": Rule("larger", 4, "##"),
    "difference_1": Rule("difference", 1, "~~"),
    "smaller_5": Rule("smaller", 5, "^^"),
}
QUESTIONS, PLAIN = 50, 128  # of each test, and plain sums
TESTS = ("test_id", "test_ood")
# All samples are learnt, and the last state is the result: eight are too few to validate on.
SETTINGS = (
    "task.hold_out=0.0",
    "train.valid_every=0",
    "train.batch_size=16",
    "loss.hidden_weight=100.0",
    "lora.rank=16",
    "lora.alpha=16.0",
    "lora.targets=('q_proj','k_proj','v_proj','o_proj','gate_proj','up_proj','down_proj')",
    "eval.batch_size=100",
    "eval.max_new_tokens=8",
    "eval.systems=('base','base_with_rule','student')",
    "model.path=rulebook",
)


def write_task(root: pathlib.Path, names: Sequence[str], seed: int, samples: int) -> None:
    """Writes the folder of several rules; with the same operands in all samples only the symbol tells them apart."""
    train = distinct_operands(random.Random(f"train-{seed}"), samples, 1, 99)
    for name in names:
        rng, rule, folder = random.Random(f"{name}-{seed}"), RULES[name], root / "rules" / name
        write_rule(folder, rule.text())
        write_questions(folder / "train.jsonl", rule, train)
        write_questions(folder / "test_id.jsonl", rule, distinct_operands(rng, QUESTIONS, 1, 99, set(train)))
        write_questions(folder / "test_ood.jsonl", rule, distinct_operands(rng, QUESTIONS, 121, 1996))
    rng = random.Random(f"plain-{seed}")
    write_questions(root / "retain.jsonl", PLAIN_ADDITION, distinct_operands(rng, PLAIN, 1, 99))


def run_task(names: Sequence[str], seed: int, out: pathlib.Path, task: str) -> dict[str, Any]:
    """Trains one adapter on some rules; returns its eval.json with the minutes that it took, and its folder."""
    root, workdir = out / "tasks" / f"{task}_{seed}", out / f"{task}_{seed}"
    write_task(root, names, seed, _SAMPLES.value)
    settings = [f"task.root={root}", f"seed={seed}", f"train.updates={_UPDATES.value}", *SETTINGS]
    return {"results": must_train(workdir, settings), "workdir": workdir}


def relative(run: dict[str, Any], name: str, split: str) -> float:
    """Returns how often the student follows a rule over how often the base with the rule does."""
    systems = run["results"]["splits"][f"{name}/{split}"]
    return systems["student"]["exact_match"] / max(systems["base_with_rule"]["exact_match"], 1e-9)


def answered_by(run: dict[str, Any], name: str, names: Sequence[str]) -> np.ndarray:
    """Returns whether the student's answer to each of a rule's questions is what each of the rules gives.

    Returns:
      bool [questions, rules]; another rule that gives the right answer too does not count.
    """
    path = run["workdir"] / "predictions" / name / "test_id.student.jsonl"
    found = []
    for line in map(json.loads, path.read_text().splitlines()):
        a, b = (int(word) for word in line["input"].split() if word.isdigit())
        given = [f"{RULES[other].answer(a, b)}." for other in names]
        response = line["response"].strip()
        counts = [other == name or answer != line["gold"] for other, answer in zip(names, given, strict=True)]
        found.append([answer == response and count for answer, count in zip(given, counts, strict=True)])
    return np.array(found)


def leakage(run: dict[str, Any], names: Sequence[str]) -> list[float]:
    """Returns for each rule how often the student's answer is another rule's and not its own."""
    answered = {name: answered_by(run, name, names) for name in names}
    return [float(np.delete(answered[name], number, 1).any(1).mean()) for number, name in enumerate(names)]


def interference_figure(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Draws how often each rule's answer is given to each rule's questions, means over runs; returns an SVG."""
    shares = np.mean([[answered_by(run, name, names).mean(0) for name in names] for run in runs], axis=0)

    def paint(axes: Sequence[Any]) -> None:
        axis = axes[0]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.grid(False)
        axis.set_xticks(range(len(names)), map(label, names), rotation=90)
        axis.set_yticks(range(len(names)), map(label, names))
        axis.set_xlabel("rule whose answer the student gives")
        axis.set_ylabel("rule that is asked about")
        for row, column in np.argwhere(shares >= 0.005):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{shares[row, column]:.2f}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)

    return draw(1, paint, height=1.8 + 0.36 * len(names), width=2.2 + 0.36 * len(names))


def scores_of(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Returns for each rule, of every run: the scores on both tests over the ceiling, and the leakage."""
    leaked = [leakage(run, names) for run in runs]
    tests = {name: {split: [relative(run, name, split) for run in runs] for split in TESTS} for name in names}
    return {
        name: {**tests[name], "leakage": [shares[number] for shares in leaked]} for number, name in enumerate(names)
    }


def summary(runs: Sequence[dict[str, Any]], scores: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Returns a line of the table: means over rules and seeds, with the lowest and the highest rule."""
    means = {kind: {name: float(np.mean(own[kind])) for name, own in scores.items()} for kind in (*TESTS, "leakage")}

    def over_rules(kind: str) -> str:
        return spread(list(means[kind].values()))

    retain = [run["results"]["splits"]["retain"] for run in runs]
    plain = {system: np.mean([part[system]["exact_match"] for part in retain]) for system in ("base", "student")}
    leaked = list(means["leakage"].values())
    return {
        "rules": len(scores),
        "in distribution, of the ceiling": over_rules("test_id"),
        "worst rule": min(means["test_id"], key=means["test_id"].get),
        "out of it": over_rules("test_ood"),
        "plain sums": f"{plain['base']:.2f} -> {plain['student']:.2f}",
        "leakage": f"{np.mean(leaked):.3f} (at most {max(leaked):.3f})",
        "minutes": f"{np.mean([run['results']['minutes'] for run in runs]):.1f}",
    }


def main(argv: list[str]) -> None:
    """Runs all sizes and prints the table."""
    del argv
    out, seeds = pathlib.Path(_OUT.value), range(_SEEDS.value)
    sizes = [int(size) for size in _SIZES.value]
    rules, largest = {size: list(RULES)[:size] for size in sizes}, list(RULES)[: max(sizes)]
    runs = {size: [run_task(names, seed, out, f"rules{size}") for seed in seeds] for size, names in rules.items()}
    found = {size: scores_of(runs[size], names) for size, names in rules.items()}
    table = [summary(runs[size], scores) for size, scores in found.items()]
    print(tabulate(table, headers="keys", tablefmt="github"))
    if _RESULTS.value:
        pathlib.Path(_RESULTS.value).write_text(json.dumps(found, indent=1) + "\n")
    together = runs[len(largest)]
    if _FIGURE.value:
        pathlib.Path(_FIGURE.value).write_text(interference_figure(together, largest))
    if not _ALONE.value:
        return
    lines = []
    for name in largest:
        alone = [run_task([name], seed, out, name) for seed in seeds]
        scores = [np.mean([relative(run, name, "test_id") for run in runs]) for runs in (alone, together)]
        minutes = np.mean([run["results"]["minutes"] for run in alone])
        lines.append({"rule": name, "alone": scores[0], f"among {len(largest)}": scores[1], "minutes alone": minutes})
    print(tabulate(lines, headers="keys", tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    app.run(main)
