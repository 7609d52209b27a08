"""The quickstart's scores over seeds, as the table in README.md.

    python benchmarks/quickstart_table.py --workdir=runs/table [--groups=k8,k32,...] [--seeds=0,1,2]

Each cell is one `python -m rdjax.train` in its own folder; finished cells are not run again. Writes
<workdir>/table.json and prints a markdown table of means with the lowest and highest seed.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

from absl import app, flags

_WORKDIR = flags.DEFINE_string("workdir", "runs/table", "Holds a folder for every cell.")
_GROUPS = flags.DEFINE_list("groups", None, "Which rows of the table; default: all.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each row.")
_PUBLISHED = flags.DEFINE_string("published", None, "The published math_experiments folder, for the published rows.")

ALONE = {"eval.systems": '("student",)'}
TUNED = {"method": "inst_tune_without_rule", **ALONE}
GROUPS = {
    "k8": {"task.k": 8},
    "k32": {"task.k": 32, "train.epochs": 100},
    "tune_k8": {"task.k": 8, **TUNED},
    "tune_k32": {"task.k": 32, "train.epochs": 100, **TUNED},
    "plus3": {"task.generated.constant": 3, "task.generated.symbol": "&&"},
    "larger7": {"task.generated.value": "larger", "task.generated.constant": 7, "task.generated.symbol": "%%"},
}


def published_groups(root: str) -> dict[str, dict]:
    """The published files, for each k."""
    return {f"published_k{k}": {"task.root": root, "task.k": k, "train.epochs": 3200 // k} for k in (4, 8, 16, 32)}


def run_cell(folder: pathlib.Path, seed: str, overrides: dict) -> dict:
    """Runs one cell unless it is finished; returns its eval.json and the seconds it took."""
    command = [sys.executable, "-m", "rdjax.train", "--config=configs/quickstart.py", f"--workdir={folder}"]
    command += [f"--config.seed={seed}", *(f"--config.{name}={value}" for name, value in overrides.items())]
    began = time.monotonic()
    if not (folder / "eval.json").exists():
        log = subprocess.run(command, capture_output=True, text=True)
        if log.returncode:
            sys.exit(f"{' '.join(command)}\n{log.stderr[-2000:]}")
        (folder / "seconds.json").write_text(json.dumps(time.monotonic() - began))
    seconds = json.loads((folder / "seconds.json").read_text())
    return {"seconds": seconds, "splits": json.loads((folder / "eval.json").read_text())["splits"]}


def spread(values: list[float]) -> str:
    """Mean and range."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main(argv: list[str]) -> None:
    workdir = pathlib.Path(_WORKDIR.value)
    groups = GROUPS | (published_groups(_PUBLISHED.value) if _PUBLISHED.value else {})
    extra = dict(argument.split("=", 1) for argument in argv[1:])
    table = {}
    for name in _GROUPS.value or groups:
        cells = {seed: run_cell(workdir / f"{name}_seed{seed}", seed, groups[name] | extra) for seed in _SEEDS.value}
        table[name] = cells
        first = next(iter(cells.values()))
        for split, systems in first["splits"].items():
            for system in systems:
                rows = [cell["splits"][split][system] for cell in cells.values()]
                match = spread([row["exact_match"] for row in rows])
                closed = [row["gap_closed"] for row in rows]
                gap = "-" if None in closed else spread(closed)
                print(f"| {name} | {system} | {split} | {match} | {gap} |", flush=True)
        print(f"| {name} | seconds | {spread([cell['seconds'] for cell in cells.values()])} |", flush=True)
    (workdir / "table.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
