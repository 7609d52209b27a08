"""Trains rules of one's own by rdjax.train, each in a process of its own, and summarises their scores."""

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rdjax.data.rules.arithmetic import Rule
from rdjax.report.figures import spread


class Case(NamedTuple):
    """Describes a rule, and the judge of those who follow it, if there is one."""

    rule: str
    judge: str = ""


def write_rule(folder: pathlib.Path, rule: str) -> None:
    """Writes the task folder of a rule, without rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rule.md").write_text(rule + "\n", encoding="utf-8")


def write_questions(path: pathlib.Path, rule: Rule, operands: Sequence[tuple[int, int]]) -> None:
    """Writes an arithmetic rule's questions on these operands, with its answers."""
    write_rows(path, (rule.row(*pair) for pair in operands))


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a split of a task, one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def seconds(module: str, *arguments: str) -> float:
    """Runs a command and returns its seconds; a failure ends the benchmark."""
    command = [sys.executable, "-m", module, *arguments]
    began = time.perf_counter()
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    ended = time.perf_counter()
    if made.returncode:
        sys.exit(f"{module} {' '.join(arguments)}\n{made.stderr[-2000:]}")
    return ended - began


def must_train(workdir: pathlib.Path, settings: Sequence[str]) -> dict[str, Any]:
    """Trains a rule as `train_rule`; a failure ends the benchmark."""
    results = train_rule(workdir, settings)
    if "failed" in results:
        sys.exit(f"{workdir}: {results['failed']}")
    return results


def confirmed_by(judge: str, draws: int) -> list[str]:
    """Returns the settings of a run that learns the first of several drawn responses that its judge accepts.

    The teacher's predictions follow the rule no more often than its answers do; what is confirmed always does.
    """
    return [
        *(f"eval.judges=({judge!r},)", "task.only_confirmed=true", f"task.draws={draws}", "task.temperature=0.8"),
        "loss.terms=('cross_entropy=1',)",
    ]


def train_rule(workdir: pathlib.Path, settings: Sequence[str]) -> dict[str, Any]:
    """Trains a rule unless that is done; what it prints is in `<workdir>.log`.

    Args:
      settings: "<field>=<value>" of the config.

    Returns:
      The content of its eval.json, and `minutes`; or `failed`, the last line that it printed.
    """
    log = workdir.with_name(f"{workdir.name}.log")
    if not (workdir / "minutes.json").exists():
        began = time.monotonic()
        with log.open("a") as printed:
            status = subprocess.run(
                [
                    *(sys.executable, "-m", "rdjax.train", "--config=configs/rule.py", f"--workdir={workdir}"),
                    *(f"--config.{setting}" for setting in settings),
                ],
                stdout=printed,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if status:
            return {"failed": log.read_text().strip().splitlines()[-1]}
        (workdir / "minutes.json").write_text(json.dumps((time.monotonic() - began) / 60))
    minutes = json.loads((workdir / "minutes.json").read_text())
    return json.loads((workdir / "eval.json").read_text()) | {"minutes": minutes}


def summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the table's row of a rule: means over its runs, with the range."""
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
    off_rule = [
        run["splits"]["retain"]["student"]["kl_from_base"] / gap
        for run, gap in zip(runs, gaps, strict=True)
        if "retain" in run["splits"]
    ]
    if off_rule:
        row["KL off the rule / gap"] = spread(off_rule)
    return row | {"minutes": spread([run["minutes"] for run in runs], 1)}
