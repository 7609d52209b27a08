"""Times adapters that train together: `python -m benchmarks.rules_at_once --out=benchmarks/results/rules_at_once.json`.

Each of n arithmetic rules gets an adapter of its own on the embedded model, by one `rdjax.train_each` for n = 1, 4, 16
and 64, and the first `--alone` of them by one `rdjax.train` each. Whole commands, one after the other, from reading
files to reports; every adapter has eight samples and `--updates` updates, without validation.
"""

import itertools
import json
import os
import pathlib
import platform
import random
import tempfile
from collections.abc import Sequence

import numpy as np
from absl import app, flags
from tabulate import tabulate

from benchmarks.rule_runs import seconds, write_questions, write_rule
from rdjax.data.rules.arithmetic import Rule, distinct_operands

_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")
_SIZES = flags.DEFINE_list("sizes", ["1", "4", "16", "64"], "Numbers of rules.")
_ALONE = flags.DEFINE_integer("alone", 4, "Rules that are also trained alone.", lower_bound=1)
_UPDATES = flags.DEFINE_integer("updates", 200, "Updates of every adapter.", lower_bound=1)

SAMPLES, TESTS = 8, 50


def write_rules(root: pathlib.Path, count: int) -> list[str]:
    """Writes the folders of so many rules; returns their names."""
    kinds = itertools.product(("sum", "difference", "larger", "smaller", "first", "second"), range(1, 12))
    names = []
    for number, (value, constant) in enumerate(itertools.islice(kinds, count)):
        name, rule, rng = f"{value}_{constant}", Rule(value, constant, "%&"), random.Random(number)
        folder = root / "rules" / name
        write_rule(folder, rule.text())
        train = distinct_operands(rng, SAMPLES, 1, 99)
        for split, operands in (("train", train), ("test", distinct_operands(rng, TESTS, 1, 99, set(train)))):
            write_questions(folder / f"{split}.jsonl", rule, operands)
        names.append(name)
    return names


def settings(root: pathlib.Path, workdir: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Returns the arguments of a command that trains these rules."""
    return [
        *("--config=configs/rule.py", f"--workdir={workdir}", f"--config.task.rules={tuple(names)}"),
        *("--config.model.path=rulebook", f"--config.task.root={root}", "--config.eval.max_new_tokens=8"),
        *("--config.train.valid_every=0", "--config.task.hold_out=0.0", f"--config.train.updates={_UPDATES.value}"),
    ]


def main(argv: list[str]) -> None:
    """Times all sizes and prints the table."""
    del argv
    sizes = [int(size) for size in _SIZES.value]
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        names = write_rules(folder, max(sizes))
        alone = [
            seconds("rdjax.train", *settings(folder, folder / "alone" / name, [name])) for name in names[: _ALONE.value]
        ]
        together = {
            size: seconds(
                "rdjax.train_each", *settings(folder, folder / f"each{size}", names[:size]), f"--together={size}"
            )
            for size in sizes
        }
    one = float(np.mean(alone))
    lines = [
        {"adapters": n, "seconds": total, "seconds each": total / n, "of one by one": total / n / one}
        for n, total in together.items()
    ]
    print(tabulate(lines, headers="keys", tablefmt="github", floatfmt=".2f"))
    print(f"one by one: {one:.1f} seconds each ({min(alone):.1f}-{max(alone):.1f})")
    found = {
        "seconds_alone": alone,
        "seconds_together": {str(size): total for size, total in together.items()},
        "updates": _UPDATES.value,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if _OUT.value:
        pathlib.Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
