"""Trains rules of many kinds with the default settings: `python -m benchmarks.defaults --out=runs/defaults`.

Each case is a folder of a rule as a user would write it (rule.md, train.jsonl, test*.jsonl, retain.jsonl), on an
embedded model; the command is `rdjax.train` with configs/rule.py and no setting but model, folder and seed. Runs that
are finished are not repeated. The table has the student's scores relative to the base's: with the rule on the tests,
without it on retain. docs/study_defaults.md shows its output.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from tabulate import tabulate

from benchmarks.rule_runs import must_train, write_rows, write_rule
from configs import base
from rdjax.data.generated import GENERATORS
from rdjax.data.rows import Row
from rdjax.data.rules.refusal import ACTS, HARMFUL
from rdjax.data.splits import RETAIN
from rdjax.report.figures import spread

_OUT = flags.DEFINE_string("out", "runs/defaults", "Folder of the cases and their runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every case.", lower_bound=1)
_SETTINGS = flags.DEFINE_multi_string("settings", [], "Further settings: --settings=<field>=<value>.")
_CASES = flags.DEFINE_list("cases", None, "Names of cases; default: all.")


class Case(NamedTuple):
    """Describes a rule of one of the embedded tasks, with `k` training rows."""

    model: str
    task: str
    k: int
    rule: dict[str, Any] = {}  # noqa: RUF012  fields of task.generated
    even: bool = False  # of refusal: as many questions of each kind that the rule names, where chance may leave one out


LANGUAGE = "rulebook-language"
CASES = {
    "larger6": Case("rulebook", "arithmetic", 16, {"value": "larger", "constant": 6, "symbol": "%&"}),
    "difference4": Case("rulebook", "arithmetic", 16, {"value": "difference", "constant": 4, "symbol": "&&"}),
    "first7": Case("rulebook", "arithmetic", 16, {"value": "first", "constant": 7, "symbol": "%%"}),
    "smaller2": Case("rulebook", "arithmetic", 16, {"value": "smaller", "constant": 2, "symbol": "@@"}),
    "sum1_k4": Case("rulebook", "arithmetic", 4),
    "sum1_k32": Case("rulebook", "arithmetic", 32),
    "sum1_k128": Case("rulebook", "arithmetic", 128),
    "sentiment": Case(LANGUAGE, "sentiment", 16),
    "safety": Case(LANGUAGE, "safety", 16),
    "safety_even": Case(LANGUAGE, "safety", 16, even=True),
    "sentiment_k32": Case(LANGUAGE, "sentiment", 32),
    "safety_k32": Case(LANGUAGE, "safety", 32),
}


def write_folder(case: Case, seed: int, folder: pathlib.Path) -> None:
    """Writes a case as a user's folder, without validation rows."""
    task = base.get_config().task
    task.k, task.demos = 3 * case.k if case.even else case.k, False
    task.generated.update(case.rule)
    splits = dict(GENERATORS[case.task](task, seed).splits)
    if case.even:
        splits["train"] = even_kinds(splits["train"], case.k)
    write_rule(folder, splits["train"][0]["rule"])
    for split, rows in splits.items():
        if split != "valid":
            fields = ("instruction", "input", "output")
            write_rows(folder / f"{split}.jsonl", ({name: row[name] for name in fields} for row in rows))


def even_kinds(rows: Sequence[Row], k: int) -> list[Row]:
    """Returns k of the rows: a quarter of each harmful kind, which an answer names first, and half of the others."""
    of_kind = {kind: [row for row in rows if f"That is {kind}." in row["output"]] for kind in ACTS}
    harmless = [row for row in rows if not any(row in of_kind[kind] for kind in HARMFUL)]
    return [*(row for kind in HARMFUL for row in of_kind[kind][: k // 4]), *harmless[: k // 2]]


def run_case(name: str, seed: int, out: pathlib.Path) -> dict[str, Any]:
    """Trains a case with the defaults and returns its eval.json."""
    case, folder = CASES[name], out / "rules" / f"{name}_{seed}"
    write_folder(case, seed, folder)
    settings = [f"model.path={case.model}", f"task.root={folder}", f"seed={seed}", *_SETTINGS.value]
    return must_train(out / f"{name}_{seed}", settings)


def relative_scores(results: dict[str, Any]) -> dict[str, float]:
    """Returns the student's score on each split over that of the base: with the rule, or without it on retain."""
    scores = {}
    for split, systems in results["splits"].items():
        metric, other = results["metric"][split], "base" if split == RETAIN else "base_with_rule"
        scores[split] = systems["student"][metric] / max(systems[other][metric], 1e-9)
    return scores


def main(argv: list[str]) -> None:
    """Runs the cases and prints their scores."""
    del argv
    out, table = pathlib.Path(_OUT.value), []
    for name in _CASES.value or CASES:
        runs = [run_case(name, seed, out) for seed in range(_SEEDS.value)]
        scores = [relative_scores(results) for results in runs]
        row = {"case": name, "k": CASES[name].k}
        for split in scores[0]:
            values = [part[split] for part in scores]
            absolute = np.mean([results["splits"][split]["student"][results["metric"][split]] for results in runs])
            row[split] = f"{spread(values)}, {absolute:.2f}"
        table.append(row)
    print(tabulate(table, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    app.run(main)
