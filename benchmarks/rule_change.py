"""Changes and removes a rule that a student has learnt: `python -m benchmarks.rule_change --out=runs/rule_change`.

The embedded model learns "the larger number plus 6" and moves over to "the smaller number plus 2" under the same symbol
(model.student_adapter), learns the second rule from scratch, and unlearns the first (task.remove_rule); all with the
defaults and 16 samples. The table has the share of 100 questions, in distribution (operands to 99) and out of it, that
are answered by the new rule and by the old one, and plain sums, which neither is about; means over seeds, with the
range. docs/study_rules.md shows its output.
"""

import pathlib
import random
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from tabulate import tabulate

from benchmarks.rule_runs import must_train, write_questions, write_rule
from rdjax.data.rules.arithmetic import PLAIN_ADDITION, Rule, distinct_operands
from rdjax.report.figures import spread

_OUT = flags.DEFINE_string("out", "runs/rule_change", "Folder of the rules and their runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every case.", lower_bound=1)

OLD, NEW = Rule("larger", 6, "%&"), Rule("smaller", 2, "%&")
SAMPLES, TESTS, PLAIN = 16, 100, 128
SETTINGS = ("model.path=rulebook", "eval.max_new_tokens=8", "eval.batch_size=100")


def write_folder(folder: pathlib.Path, rule: Rule, seed: int) -> None:
    """Writes the folder of a rule: its own tests, and the same questions with the old and the new rule's answers."""
    write_rule(folder, rule.text())
    rng = random.Random(f"rule-change-{seed}")
    train = distinct_operands(rng, SAMPLES, 1, 99)
    tests = {
        "id": distinct_operands(rng, TESTS, 1, 99, set(train)),
        "ood": distinct_operands(rng, TESTS, 121, 1996),
    }
    files = {"train": (rule, train), "retain": (PLAIN_ADDITION, distinct_operands(rng, PLAIN, 1, 99))}
    files |= {
        f"test_{name}_{which}": (answered_by, operands)
        for which, answered_by in (("old", OLD), ("new", NEW))
        for name, operands in tests.items()
    }
    for name, (answered_by, operands) in files.items():
        write_questions(folder / f"{name}.jsonl", answered_by, operands)


def run_case(name: str, rule: Rule, seed: int, out: pathlib.Path, *more: str) -> dict[str, Any]:
    """Trains a case and returns its eval.json, with the minutes that it took."""
    folder = out / "rules" / f"{name}_{seed}"
    write_folder(folder, rule, seed)
    return must_train(out / f"{name}_{seed}", [f"task.root={folder}", f"seed={seed}", *SETTINGS, *more])


def summary(name: str, runs: Sequence[dict[str, Any]], system: str = "student") -> dict[str, Any]:
    """Returns a line of the table: how often a system answers by each of the rules."""

    def scores(split: str) -> str:
        return spread([run["splits"][split][system]["exact_match"] for run in runs])

    found = {
        f"{which} rule, {kind}": scores(f"test_{short}_{which}")
        for which in ("new", "old")
        for kind, short in (("in distribution", "id"), ("out of it", "ood"))
    }
    return {"": name, **found, "plain sums": spread(plain_sums(runs, system))}


def plain_sums(runs: Sequence[dict[str, Any]], system: str) -> list[float]:
    """Returns how often a system is right where neither rule applies; the base with the rule is not asked that."""
    retain = [run["splits"]["retain"] for run in runs]
    return [part[system]["exact_match"] for part in retain if system in part]


def main(argv: list[str]) -> None:
    """Runs all cases and prints the table."""
    del argv
    out, seeds = pathlib.Path(_OUT.value), range(_SEEDS.value)
    first = [run_case("first", OLD, seed, out) for seed in seeds]
    start = [f"model.student_adapter={out}/first_{seed}/adapter" for seed in seeds]
    changed = [run_case("changed", NEW, seed, out, start[seed]) for seed in seeds]
    scratch = [run_case("scratch", NEW, seed, out) for seed in seeds]
    removed = [run_case("removed", OLD, seed, out, start[seed], "task.remove_rule=True") for seed in seeds]
    lines = [
        summary("base", first, "base"),
        summary("base with the old rule", first, "base_with_rule"),
        summary("base with the new rule", changed, "base_with_rule"),
        summary("student of the old rule", first),
        summary("moved over to the new rule", changed),
        summary("the new rule from scratch", scratch),
        summary("the old rule removed", removed),
    ]
    print(tabulate(lines, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    app.run(main)
