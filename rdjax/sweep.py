"""Trains methods x k x seeds: `python -m rdjax.sweep --config=configs/sweeps/arithmetic.py --workdir=runs/arithmetic`.

A cell is a method at one k. Its seeds train at once, side by side over one copy of the base; each has a folder laid
out like that of `rdjax.train`. The same command, run again, resumes: finished cells stay, failed ones are tried again.
"""

import copy
import difflib
import functools
import pathlib
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict
from tabulate import tabulate

from rdjax.config import METHODS
from rdjax.data.batches import steps_per_epoch
from rdjax.data.tasks import load_task
from rdjax.errors import UserError
from rdjax.evaluation.results import split_metrics
from rdjax.models.load import LanguageModel, load_model
from rdjax.parallel.mesh import make_mesh
from rdjax.parallel.processes import (
    broadcast_from_first,
    exists_on_first,
    exit_if_signalled,
    exit_on_sigterm,
    is_first,
)
from rdjax.report.page import write_page
from rdjax.report.sweep_data import cell_folder, run_folder
from rdjax.report.sweep_table import sweep_table
from rdjax.run import cli, run_flags
from rdjax.run.experiment import Run
from rdjax.run.fingerprints import check_same_inputs, fingerprint_inputs
from rdjax.run.prepare import check_run, prepare, task_judges
from rdjax.run.side_by_side import checkpoint_folder, finish_runs, first_line, prepare_runs, raise_if_others_wait
from rdjax.storage.records import Prediction, Results, RunRecord, copy_records, read_record, write_record
from rdjax.storage.workdir import PREDICTIONS, RECORD, RESULTS, SWEEP, check_workdir, open_workdir

FAILURE = "failures.json"
# Their answers depend on the rows and the weights alone, so that cells on the same rows share them.
SHARED_SYSTEMS = ("base", "base_with_rule")


def cell_config(config: config_dict.ConfigDict, method: str, k: int, seed: int) -> config_dict.ConfigDict:
    """Returns the config of one run: the sweep's, with k, the seed and the settings of the method or variant.

    Raises:
      UserError: the settings name an unknown field, or set k or the seed.
    """
    run_config = copy.deepcopy(config).unlock()
    del run_config["sweep"]
    run_config.lock()
    run_config.task.k, run_config.seed = k, seed
    if method in METHODS:
        run_config.method = method
    settings = config.sweep.settings.get(method, config_dict.ConfigDict())
    try:
        run_config.update(settings)
    except (KeyError, TypeError) as error:
        raise UserError(f"config.sweep.settings.{method}: {error}") from None
    if (run_config.task.k, run_config.seed) != (k, seed):
        raise UserError(f"config.sweep.settings.{method} sets task.k or seed, which are the sweep's ks and seeds")
    if config.sweep.updates and "epochs" not in settings.get("train", {}):
        set_updates(run_config, config.sweep.updates)
    return run_config


def set_updates(run_config: config_dict.ConfigDict, updates: int) -> None:
    """Sets the length of a run: whole epochs of k samples, or exactly so many updates where an epoch has other ones.

    It has others where samples are held out for validation, or inputs that the rule is not about are trained on.
    """
    train = run_config.train
    if run_config.task.hold_out or run_config.loss.retain_weight:
        train.updates, train.epochs, train.patience = updates, 0, 0
    else:
        train.epochs = -(-updates // steps_per_epoch(run_config.task.k, train.batch_size))


def check_sweep(config: config_dict.ConfigDict) -> None:
    """Checks the config, task and judges of every cell before the first one starts.

    Raises:
      UserError: names the field and what would be accepted.
    """
    _check_sweep_section(config)
    for method in config.sweep.methods:
        for k in config.sweep.ks:
            run_configs = [cell_config(config, method, k, seed) for seed in config.sweep.seeds]
            for run_config in run_configs:
                check_run(run_config)
            task_judges(run_configs[0], load_task(run_configs[0].task, run_configs[0].seed))


def _check_sweep_section(config: config_dict.ConfigDict) -> None:
    """Checks the fields of `config.sweep`."""
    missing = {"methods", "ks", "seeds", "updates", "settings"} - set(config.get("sweep", {}))
    if missing:
        raise UserError(f"config.sweep.{min(missing)} is missing; a sweep starts from configs/sweeps/arithmetic.py")
    known = (*METHODS, *config.sweep.settings)
    for name, settings in config.sweep.settings.items():
        close = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.9)
        if close and name not in (*METHODS, *config.sweep.methods):
            raise UserError(f"config.sweep.settings.{name} is of no method; accepted: such as {close[0]}")
        if config.sweep.updates and "updates" in settings.get("train", {}):
            raise UserError(
                f"config.sweep.settings.{name} sets train.updates; accepted with config.sweep.updates: epochs"
            )
    for method in config.sweep.methods:
        if method not in known:
            raise UserError(f"config.sweep.methods: {method!r} is unknown; accepted: {', '.join(dict.fromkeys(known))}")
    for name in ("methods", "ks", "seeds"):
        values = config.sweep[name]
        if not values or len(set(values)) < len(values):
            raise UserError(f"config.sweep.{name} = {tuple(values)}; accepted: one or more, each once")
    for name in ("ks", "seeds"):
        if any(type(value) is not int for value in config.sweep[name]):
            raise UserError(f"config.sweep.{name} = {tuple(config.sweep[name])}; accepted: whole numbers")
    if config.sweep.updates < 0:
        raise UserError(f"config.sweep.updates = {config.sweep.updates}; accepted: 0 (as in the config) or more")
    if min(config.sweep.ks) < 1:
        raise UserError(f"config.sweep.ks = {tuple(config.sweep.ks)}; accepted: numbers of samples from 1 on")


@functools.lru_cache(maxsize=1)
def load_once(path: str, dtype: str, int8: bool, data: int, fsdp: int, tensor: int) -> LanguageModel:
    """Loads the model of a cell, unless it is that of the cell before."""
    sizes = config_dict.ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor})
    return load_model(path, dtype, make_mesh(sizes), int8)


def prepare_cell(
    config: config_dict.ConfigDict, method: str, k: int, workdir: pathlib.Path
) -> tuple[list[Run], dict[int, str]]:
    """Prepares the runs of a cell, one per seed, over one copy of the model; returns the errors of others, by seed."""

    def prepare_seed(seed: int) -> Run:
        run_config = cell_config(config, method, k, seed)
        source, mesh = run_config.model, run_config.mesh
        model = load_once(source.path, source.dtype, source.int8, mesh.data, mesh.fsdp, mesh.tensor)
        return prepare(run_config, run_folder(workdir, method, k, seed), model, "rdjax.sweep")

    return prepare_runs(config.sweep.seeds, prepare_seed, cell_folder(workdir, method, k))


def run_cell(runs: Sequence[Run], folder: pathlib.Path, finished: Sequence[pathlib.Path]) -> dict[int, str]:
    """Trains and evaluates the runs of a cell, side by side where they can.

    Args:
      finished: folders of runs of other cells whose predictions may be shared; so may be those of this cell.

    Returns:
      The errors, by seed.
    """
    others = [*finished, *(run.workdir for run in runs)]

    def share(run: Run) -> None:
        done = [folder for folder in others if folder != run.workdir and (folder / RESULTS).exists()]
        share_predictions(run, done)

    failures = finish_runs(runs, checkpoint_folder(folder, runs), share)
    return {run.config.seed: failures[run.workdir.name] for run in runs if run.workdir.name in failures}


def share_predictions(run: Run, others: Sequence[pathlib.Path]) -> None:
    """Copies the base's predictions from a finished run whose base answers the same prompts in the same way."""
    if not is_first():
        return  # `evaluate` asks the first process which predictions exist
    inputs = _answer_inputs(run.workdir)
    for other in others:
        if _answer_inputs(other) != inputs:
            continue
        folder = other / PREDICTIONS
        for path in sorted(folder.rglob("*.jsonl")):  # with several rules each has a folder of its own
            if path.stem.rpartition(".")[2] in SHARED_SYSTEMS:
                target = run.workdir / PREDICTIONS / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_records(path, target, Prediction)
        return


def _answer_inputs(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns all that the base's answers in a run depend on: rows, weights, prompts and decoding."""
    record = read_record(workdir / RECORD, RunRecord)
    config = record["config"]
    decoding = {name: value for name, value in config["eval"].items() if name not in ("systems", "gap_rows")}
    inputs = {"fingerprint": record["fingerprint"], "model": config["model"], "task": config["task"], "eval": decoding}
    if config["loss"].get("retain_weight") or (workdir / "inputs").exists():
        inputs["seed"] = config["seed"]  # it divides retain, and draws the inputs that the model writes
    return inputs | ({"lora": config["lora"]} if config["model"]["adapter"] else {})


def summarise(config: config_dict.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the content of sweep.json: the scores of every finished run, and the errors of the others."""
    cells, failed = [], []
    for method in config.sweep.methods:
        for k in config.sweep.ks:
            for seed in config.sweep.seeds:
                path = run_folder(workdir, method, k, seed) / RESULTS
                if path.exists():
                    results = read_record(path, Results)
                    cell = {"method": method, "k": k, "seed": seed, **results, "metric": split_metrics(results)}
                    cells.append(cell)
            path = cell_folder(workdir, method, k) / FAILURE
            if path.exists():
                failures = read_record(path, dict[str, str])
                failed += [{"method": method, "k": k, "seed": seed, "error": text} for seed, text in failures.items()]
    return {"cells": cells, "failed": failed}


def run_cells(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    """Runs the cells that are not finished, one after the other, and writes sweep.json after each."""
    cells = [(method, k) for k in config.sweep.ks for method in config.sweep.methods]
    finished: list[pathlib.Path] = []
    printed_notes: set[str] = set()
    for number, (method, k) in enumerate(cells, start=1):
        folders = [run_folder(workdir, method, k, seed) for seed in config.sweep.seeds]
        length = cell_config(config, method, k, config.sweep.seeds[0]).train
        most = f"{length.epochs} epochs" if length.epochs else f"at most {length.updates} updates"
        title = f"cell {number} of {len(cells)}: {method}, k = {k}, {len(folders)} seeds, {most}"
        # A list, not a generator: every process must ask for every folder.
        if all([exists_on_first(folder / RESULTS) for folder in folders]):
            print(f"{title}: finished")
            finished += folders
            continue
        print(title)
        exit_if_signalled()
        began = time.monotonic()
        failures = attempt_cell(config, method, k, workdir, finished, printed_notes)
        write_failures(cell_folder(workdir, method, k), failures)
        if failures:
            print(f"{title}: failed: {failures}", file=sys.stderr)
        else:
            print(f"{title}: {time.monotonic() - began:.0f} seconds")
        finished += [folder for folder in folders if exists_on_first(folder / RESULTS)]
        write_record(workdir / SWEEP, summarise(config, workdir))


def attempt_cell(
    config: config_dict.ConfigDict,
    method: str,
    k: int,
    workdir: pathlib.Path,
    finished: Sequence[pathlib.Path],
    printed_notes: set[str],
) -> dict[int, str]:
    """Runs a cell, whatever goes wrong in it.

    Args:
      finished: folders of runs whose predictions may be shared.
      printed_notes: notes on the task that were printed before; gets those of this cell.

    Returns:
      The errors, by seed.
    """
    try:
        runs, failures = prepare_cell(config, method, k, workdir)
        for note in dict.fromkeys(note for run in runs for note in run.task.notes if note not in printed_notes):
            print(f"note: {note}")
            printed_notes.add(note)
        return failures | run_cell(runs, cell_folder(workdir, method, k), finished)
    except Exception as error:  # anything: the other cells continue
        raise_if_others_wait(error)
        if not isinstance(error, UserError):
            traceback.print_exc()
        return dict.fromkeys(config.sweep.seeds, first_line(error))


def write_failures(folder: pathlib.Path, failures: dict[int, str]) -> None:
    """Writes the errors of a cell, or deletes those of an earlier attempt."""
    if failures:
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / FAILURE, failures)
    elif is_first():
        (folder / FAILURE).unlink(missing_ok=True)


def main(argv: list[str]) -> None:
    """Runs a sweep; ends with exit status 1 where a run failed."""
    cli.no_arguments(argv)
    config, workdir = run_flags.config("configs/sweeps/arithmetic.py"), run_flags.workdir()
    check_sweep(config)
    exit_on_sigterm()
    check_workdir(workdir, config)
    first = cell_config(config, config.sweep.methods[0], config.sweep.ks[0], config.sweep.seeds[0])
    fingerprint = fingerprint_inputs(first, load_task(first.task, first.seed))
    check_same_inputs(config, fingerprint)
    open_workdir(workdir, config, "rdjax.sweep", fingerprint)
    run_cells(config, workdir)
    summary = summarise(config, workdir)
    write_record(workdir / SWEEP, summary)
    if any(cell["splits"] for cell in summary["cells"]):
        table = sweep_table(summary["cells"])
        print(tabulate(table.rows, table.head, tablefmt="github", disable_numparse=True))
    print(f"wrote {write_page(workdir)}")
    if broadcast_from_first(len(summary["failed"])):
        names = "; ".join("{method}, k = {k}, seed {seed}: {error}".format(**cell) for cell in summary["failed"])
        print(f"failed: {names}. The same command tries them again.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
