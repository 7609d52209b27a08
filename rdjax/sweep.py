"""Methods x k x seeds: `python -m rdjax.sweep --config=configs/sweeps/arithmetic.py --workdir=runs/arithmetic`.

A cell is a method at one k. Its seeds train at once, side by side over one copy of the base; each keeps a folder laid
out as a run's. Running the same command again goes on: finished cells stay, failed ones are tried again.
"""

import collections
import json
import pathlib
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from rdjax import cli, experiment_flags
from rdjax.config import METHODS, check_config
from rdjax.data.batches import steps_per_epoch
from rdjax.errors import UserError
from rdjax.models.load import LanguageModel, load_model
from rdjax.report import spread, write_report
from rdjax.sharding import make_mesh
from rdjax.train import FINISHED, Run, evaluate_all, prepare, train_all
from rdjax.workdir import check_workdir, open_workdir, write_json

SUMMARY = "sweep.json"
FAILURE = "error.txt"
# What they answer follows from the rows and the weights alone: cells on the same rows share it.
SHARED_SYSTEMS = ("base", "base_with_rule")


def cell_config(config: config_dict.ConfigDict, method: str, k: int, seed: int) -> config_dict.ConfigDict:
    """The config of one run of a cell: the sweep's, with k, seed, and the method or variant with its own settings."""
    made = config.copy_and_resolve_references().unlock()
    del made["sweep"]
    made.lock()
    made.task.k, made.seed = k, seed
    if method in METHODS:
        made.method = method
    try:
        made.update(config.sweep.settings.get(method, {}))
    except (KeyError, TypeError) as error:
        raise UserError(f"config.sweep.settings.{method}: {error}") from None
    if config.sweep.updates:
        made.train.epochs = -(-config.sweep.updates // steps_per_epoch(k, made.train.batch_size))
    return made


def check_sweep(config: config_dict.ConfigDict) -> None:
    """Checks all cells before the first one starts.

    Raises:
      UserError: names the field and what would be accepted.
    """
    if "sweep" not in config:
        raise UserError("config.sweep is missing; accepted: a config of configs/sweeps")
    known = (*METHODS, *config.sweep.settings)
    for method in config.sweep.methods:
        if method not in known:
            raise UserError(f"config.sweep.methods: {method!r} is unknown; accepted: {', '.join(dict.fromkeys(known))}")
    for name in ("methods", "ks", "seeds"):
        chosen = config.sweep[name]
        if not chosen or len(set(chosen)) < len(chosen):
            raise UserError(f"config.sweep.{name} = {tuple(chosen)}; accepted: one or more, each once")
    for method in config.sweep.methods:
        for k in config.sweep.ks:
            check_config(cell_config(config, method, k, config.sweep.seeds[0]))


def train_cell(runs: Sequence[Run], folder: pathlib.Path) -> None:
    """Trains and evaluates the runs of a cell; those with as many samples train side by side."""
    groups = collections.defaultdict(list)
    for run in runs:
        groups[len(run.train), len(run.valid)].append(run)
    for (samples, _), group in groups.items():
        checkpoints = folder / "checkpoints" / (f"{samples}_samples" if len(groups) > 1 else "")
        for run, adapters in zip(group, train_all(group, checkpoints), strict=True):
            write_json(run.workdir / FINISHED, evaluate_all(run, adapters))
            run.log.close()


def share_predictions(run: Run, others: Sequence[pathlib.Path]) -> None:
    """Copies the base's predictions from a finished run on the same rows."""
    mine = _record(run.workdir)
    for other in others:
        theirs = _record(other)
        if theirs["fingerprint"] == mine["fingerprint"] and theirs["config"]["eval"] == mine["config"]["eval"]:
            (run.workdir / "predictions").mkdir(exist_ok=True)
            for path in sorted((other / "predictions").glob("*.jsonl")):
                if path.name.split(".")[1] in SHARED_SYSTEMS:
                    shutil.copy(path, run.workdir / "predictions" / path.name)
            return


def _record(workdir: pathlib.Path) -> dict[str, Any]:
    return json.loads((workdir / "config.json").read_text())


def summarise(config: config_dict.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """What sweep.json holds: every finished run's scores, and every failed cell's last line of error."""
    cells, failed = [], []
    for method in config.sweep.methods:
        for k in config.sweep.ks:
            folder = cell_folder(workdir, method, k)
            for seed in config.sweep.seeds:
                path = folder / f"seed{seed}" / FINISHED
                if path.exists():
                    scores = json.loads(path.read_text())
                    cells.append({"method": method, "k": k, "seed": seed, **scores})
            if (folder / FAILURE).exists():
                error = (folder / FAILURE).read_text().strip().splitlines()[-1]
                failed.append({"method": method, "k": k, "error": error})
    return {"cells": cells, "failed": failed}


def cell_folder(workdir: pathlib.Path, method: str, k: int) -> pathlib.Path:
    return workdir / "cells" / f"{method}_k{k}"


def table(summary: dict[str, Any]) -> str:
    """A markdown table: for each method, k and split the mean over seeds and its range."""
    groups: dict[tuple, dict[str, list[float]]] = {}
    for cell in summary["cells"]:
        for split, systems in cell["splits"].items():
            for system, scores in systems.items():
                metric = next(iter(scores))
                value = scores[metric]
                if value is not None:
                    row = groups.setdefault((cell["method"], cell["k"]), {})
                    row.setdefault(f"{split} {system}", []).append(value)
    columns = list(dict.fromkeys(name for row in groups.values() for name in row))
    lines = [["method", "k", *columns], ["---"] * (2 + len(columns))]
    for (method, k), row in groups.items():
        lines.append([method, str(k), *(spread(row[name]) if name in row else "-" for name in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run_cells(config: config_dict.ConfigDict, workdir: pathlib.Path, model: LanguageModel) -> None:
    """Runs what is not finished, cell by cell."""
    order = [(method, k) for k in config.sweep.ks for method in config.sweep.methods]
    finished: list[pathlib.Path] = []
    for number, (method, k) in enumerate(order, start=1):
        folder = cell_folder(workdir, method, k)
        places = [folder / f"seed{seed}" for seed in config.sweep.seeds]
        title = f"cell {number} of {len(order)}: {method}, k = {k}, {len(places)} seeds"
        if all((place / FINISHED).exists() for place in places):
            print(f"{title}: finished")
            finished += places
            continue
        print(title)
        began = time.monotonic()
        try:
            configs = [cell_config(config, method, k, seed) for seed in config.sweep.seeds]
            runs = [prepare(own, place, model, "rdjax.sweep") for own, place in zip(configs, places, strict=True)]
            for note in runs[0].task.notes if number == 1 else ():
                print(f"note: {note}")
            for run in runs:
                share_predictions(run, finished)
            train_cell(runs, folder)
        except Exception as error:  # whatever ends a cell, the others go on
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILURE).write_text(traceback.format_exc())
            print(f"{title}: failed: {error}", file=sys.stderr)
        else:
            (folder / FAILURE).unlink(missing_ok=True)
            finished += places
            print(f"{title}: {time.monotonic() - began:.0f} seconds")
        write_json(workdir / SUMMARY, summarise(config, workdir))


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    config, workdir = experiment_flags.config("configs/sweeps/arithmetic.py"), experiment_flags.workdir()
    check_sweep(config)
    check_workdir(workdir, config)
    model = load_model(config.model.path, config.model.dtype, make_mesh(config.mesh))
    open_workdir(workdir, config, "rdjax.sweep")
    run_cells(config, workdir, model)
    summary = summarise(config, workdir)
    write_json(workdir / SUMMARY, summary)
    print(f"{table(summary)}\nwrote {write_report(workdir)}")
    if summary["failed"]:
        names = ", ".join(f"{cell['method']} k = {cell['k']} ({cell['error']})" for cell in summary["failed"])
        print(f"failed: {names}; the same command tries them again", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
