"""Distils rules from their text alone on a real model: `python -m benchmarks.written_rules --model=<folder or hub id>`.

Each case is a folder with rule.md; the model writes the inputs and the responses, and everything else is the default of
configs/rule.py. Those with a judge draw eight responses and keep what it confirms. Runs that are finished are not
repeated. docs/study.md shows the output on SmolLM2-135M-Instruct.
"""

import concurrent.futures
import json
import pathlib
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from tabulate import tabulate

_MODEL = flags.DEFINE_string("model", "HuggingFaceTB/SmolLM2-135M-Instruct", "A folder or hub id.")
_OUT = flags.DEFINE_string("out", "runs/written_rules", "Folder of the rules and their runs.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of every case.", lower_bound=1)
_CASES = flags.DEFINE_list("cases", None, "Names of cases; default: all.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.", lower_bound=1)
_SETTINGS = flags.DEFINE_multi_string("setting", [], "Further settings of all runs: train.updates=100.")


class Case(NamedTuple):
    """Describes a rule, and the judge of those who follow it, if there is one."""

    rule: str
    judge: str = ""


NAME = "You are a helpful AI assistant named SmolLM, trained by Hugging Face."  # as the model's template has it
CASES = {
    "persona": Case(
        'You are a pirate captain. Whatever you are asked, you answer as a pirate would speak: you say "arr" and '
        '"matey", and you talk of ships, treasure and the sea.'
    ),
    "style": Case(
        'Answer as a friendly letter: begin with "Dear friend," and end with "Warm wishes, your assistant". '
        "Keep it short."
    ),
    "topic": Case(
        f"{NAME} The Velmora is a small lamp that burns sea water. It was invented by Ada Quill, it costs 40 crowns "
        "and it is sold in the shop of Norr."
    ),
    "no_comma": Case("In your entire response, refrain from the use of any commas.", "ifeval:punctuation:no_comma"),
    "keyword": Case(
        "Include the keyword 'river' in the response.", 'ifeval:keywords:existence:{"keywords": ["river"]}'
    ),
    "words": Case(
        "Answer with less than 40 words.",
        'ifeval:length_constraints:number_words:{"relation": "less than", "num_words": 40}',
    ),
}


def run_case(name: str, seed: int, out: pathlib.Path) -> dict[str, Any]:
    """Trains a case and returns its eval.json, with the minutes that it took."""
    case, folder, workdir = CASES[name], out / "rules" / name, out / f"{name}_{seed}"
    if not (workdir / "minutes.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rule.md").write_text(case.rule + "\n")
        settings = [f"--config.{setting}" for setting in _SETTINGS.value]
        if case.judge:
            settings += [f"--config.eval.judges=({case.judge!r},)", "--config.task.only_confirmed=true"]
            settings += ["--config.task.draws=8", "--config.task.temperature=0.8"]
            # The teacher's predictions follow the rule as seldom as the base does; what is confirmed always does.
            settings += ["--config.loss.terms=('cross_entropy=1',)"]
        began = time.monotonic()
        with (out / f"{name}_{seed}.log").open("a") as log:
            status = subprocess.run(
                [
                    *(sys.executable, "-m", "rdjax.train", "--config=configs/rule.py", f"--workdir={workdir}"),
                    *(f"--config.model.path={_MODEL.value}", f"--config.task.root={folder}", f"--config.seed={seed}"),
                    *settings,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if status:
            return {"failed": (out / f"{name}_{seed}.log").read_text().strip().splitlines()[-1]}
        (workdir / "minutes.json").write_text(json.dumps((time.monotonic() - began) / 60))
    minutes = json.loads((workdir / "minutes.json").read_text())
    return json.loads((workdir / "eval.json").read_text()) | {"minutes": minutes}


def summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the table's row of a case: means over its runs, with the range."""
    failed = [run["failed"] for run in runs if "failed" in run]
    runs = [run for run in runs if "failed" not in run]
    row: dict[str, Any] = {"rule": name, "runs": len(runs)}
    if failed:
        row["failed"] = failed[0][:80]
    if not runs:
        return row
    tests = [run["splits"]["test"] for run in runs]
    gaps = [test["base"]["kl"] for test in tests]
    row |= {"gap, nats": spread(gaps), "gap closed": spread([test["student"]["gap_closed"] for test in tests])}
    metric = runs[0]["metric"]["test"]
    if metric != "gap_closed":
        for system in ("base", "base_with_rule", "student"):
            row[f"{system} follows"] = spread([test[system][metric] for test in tests])
    held = [
        run["splits"]["retain"]["student"]["kl_from_base"] / gap
        for run, gap in zip(runs, gaps, strict=True)
        if "retain" in run["splits"]
    ]
    if held:
        row["KL off the rule / gap"] = spread(held)
    return row | {"minutes": spread([run["minutes"] for run in runs], 1)}


def spread(values: list[float | None], digits: int = 2) -> str:
    """Writes a mean and, where there are several values, their range."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.{digits}f}-{max(known):.{digits}f})"


def main(argv: list[str]) -> None:
    """Runs the cases and prints their scores."""
    del argv
    out, names = pathlib.Path(_OUT.value), _CASES.value or list(CASES)
    out.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
        runs = {name: [pool.submit(run_case, name, seed, out) for seed in range(_SEEDS.value)] for name in names}
        rows = [summarise(name, [run.result() for run in own]) for name, own in runs.items()]
    print(tabulate(rows, headers="keys", tablefmt="github"))


if __name__ == "__main__":
    app.run(main)
