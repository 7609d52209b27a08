"""Methods x k x seeds: `python -m rdjax.sweep --config=configs/sweeps/arithmetic.py --workdir=runs/arithmetic`.

A cell is a method at one k. Its seeds train at once, side by side over one copy of the base; each keeps a folder laid
out as a run's. Running the same command again goes on: finished cells stay, failed ones are tried again.
"""

import collections
import functools
import json
import pathlib
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import config_dict

from rdjax.config import METHODS, check_config, plain_config
from rdjax.data.batches import steps_per_epoch
from rdjax.data.tasks import load_task
from rdjax.errors import UserError
from rdjax.evaluation.judges import judges_of
from rdjax.models.load import LanguageModel, load_model
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import make_mesh
from rdjax.parallel.processes import (
    broadcast_from_first,
    check_same_everywhere,
    exists_on_first,
    exit_if_told,
    exit_on_sigterm,
    is_first,
)
from rdjax.report.page import write_page
from rdjax.report.sweep_page import Table, cell_folder, run_folder, sweep_table
from rdjax.run import cli, experiment
from rdjax.run.pipeline import FINISHED, evaluate_all, train_all
from rdjax.run.prepare import Run, fingerprint, is_test, model_folders, prepare
from rdjax.storage.files import read_json, write_json
from rdjax.storage.workdir import RECORD, check_workdir, open_workdir

SUMMARY = "sweep.json"
FAILURE = "failures.json"
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
    own = config.sweep.settings.get(method, config_dict.ConfigDict())
    try:
        made.update(own)
    except (KeyError, TypeError) as error:
        raise UserError(f"config.sweep.settings.{method}: {error}") from None
    if (made.task.k, made.seed) != (k, seed):
        raise UserError(f"config.sweep.settings.{method} sets task.k or seed, which are the sweep's ks and seeds")
    if config.sweep.updates and "epochs" not in own.get("train", {}):
        made.train.epochs = -(-config.sweep.updates // steps_per_epoch(k, made.train.batch_size))
    return made


def check_sweep(config: config_dict.ConfigDict) -> None:
    """Checks all cells, and that their data is there, before the first one starts.

    Raises:
      UserError: names the field and what would be accepted.
    """
    missing = {"methods", "ks", "seeds", "updates", "settings"} - set(config.get("sweep", {}))
    if missing:
        raise UserError(f"config.sweep.{min(missing)} is missing; a sweep starts from configs/sweeps/arithmetic.py")
    known = (*METHODS, *config.sweep.settings)
    for method in config.sweep.methods:
        if method not in known:
            raise UserError(f"config.sweep.methods: {method!r} is unknown; accepted: {', '.join(dict.fromkeys(known))}")
    for name in ("methods", "ks", "seeds"):
        chosen = config.sweep[name]
        if not chosen or len(set(chosen)) < len(chosen):
            raise UserError(f"config.sweep.{name} = {tuple(chosen)}; accepted: one or more, each once")
    if min(config.sweep.ks) < 1:
        raise UserError(f"config.sweep.ks = {tuple(config.sweep.ks)}; accepted: numbers of samples from 1 on")
    for method in config.sweep.methods:
        for k in config.sweep.ks:
            made = [cell_config(config, method, k, seed) for seed in config.sweep.seeds]
            for own in made:
                check_config(own)
            task = load_task(made[0].task, made[0].seed)
            outputs = {split: list(rows["output"]) for split, rows in task.splits.items() if is_test(split)}
            judges_of(made[0].task.name, outputs, made[0].eval.judges, made[0].eval.classifier)


@functools.lru_cache(maxsize=1)
def load_once(path: str, dtype: str, int8: bool, data: int, fsdp: int, tensor: int) -> LanguageModel:
    """The model of the cells in turn; the last one stays loaded."""
    sizes = config_dict.ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor})
    return load_model(path, dtype, make_mesh(sizes), int8)


def prepare_cell(config: config_dict.ConfigDict, method: str, k: int, workdir: pathlib.Path) -> list[Run]:
    """The runs of a cell, a seed each, over one copy of the model."""
    runs = []
    for seed in config.sweep.seeds:
        own = cell_config(config, method, k, seed)
        mesh = own.mesh
        model = load_once(own.model.path, own.model.dtype, own.model.int8, mesh.data, mesh.fsdp, mesh.tensor)
        runs.append(prepare(own, run_folder(workdir, method, k, seed), model, "rdjax.sweep"))
    return runs


def run_cell(runs: Sequence[Run], folder: pathlib.Path) -> dict[int, str]:
    """Trains and evaluates the runs of a cell: side by side those with as many pairs.

    Returns:
      What went wrong, by seed.
    """
    groups = collections.defaultdict(list)
    for run in runs:
        groups[len(run.train), len(run.valid)].append(run)
    failures: dict[int, str] = {}
    for (train, valid), group in groups.items():
        for run, adapters in train_runs(group, folder / "checkpoints", f"{train}_{valid}", failures):
            try:
                if not exists_on_first(run.workdir / FINISHED):
                    write_json(run.workdir / FINISHED, evaluate_all(run, adapters))
            except Exception as error:  # a judge, or memory: the other seeds go on
                raise_where_others_wait(error)
                failures[run.config.seed] = describe(error)
            run.log.close()
    return failures


def train_runs(
    runs: Sequence[Run], checkpoints: pathlib.Path, name: str, failures: dict[int, str]
) -> Iterator[tuple[Run, dict[str, Adapter]]]:
    """Trains runs side by side, or one by one where that fails: one seed diverges, or all at once do not fit.

    Args:
      name: of the folder of their common checkpoints.
      failures: gets what went wrong, by seed.

    Yields:
      The runs that were trained, with their adapters.
    """
    try:
        yield from zip(runs, train_all(runs, checkpoints / name), strict=True)
        return
    except Exception as error:
        raise_where_others_wait(error)
        if len(runs) == 1:
            failures[runs[0].config.seed] = describe(error)
            return
        print(f"side by side: {describe(error)}; one by one then", file=sys.stderr)
    for run in runs:
        if not exists_on_first(run.workdir / FINISHED):
            yield from train_runs([run], checkpoints, f"seed{run.config.seed}", failures)


def raise_where_others_wait(error: Exception) -> None:
    """Raises again what may have happened to this one of several processes alone: the others would wait for it.

    A `UserError` comes to all of them: they have compared what they read.
    """
    if jax.process_count() > 1 and not isinstance(error, UserError):
        raise error


def describe(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"


def share_predictions(run: Run, others: Sequence[pathlib.Path]) -> None:
    """Copies the base's predictions from a finished run that asked the same in the same way."""
    if not is_first():
        return  # `evaluate` asks the first process what is there
    mine = _record(run.workdir)
    for other in others:
        if _asked(_record(other)) != _asked(mine):
            continue
        (run.workdir / "predictions").mkdir(exist_ok=True)
        for path in sorted((other / "predictions").glob("*.jsonl")):
            if path.stem.rpartition(".")[2] in SHARED_SYSTEMS:
                shutil.copy(path, run.workdir / "predictions" / path.name)
        return


def _record(workdir: pathlib.Path) -> dict[str, Any]:
    return read_json(workdir / RECORD)


def _asked(record: dict[str, Any]) -> dict[str, Any]:
    """All that the base's answers follow from: rows, weights, prompts and the way to answer."""
    config = record["config"]
    how = {name: value for name, value in config["eval"].items() if name not in ("systems", "gap_rows")}
    asked = {"fingerprint": record["fingerprint"], "model": config["model"], "task": config["task"], "eval": how}
    return asked | ({"lora": config["lora"]} if config["model"]["adapter"] else {})


def summarise(config: config_dict.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """What sweep.json holds: every finished run's scores, and what went wrong with the others."""
    cells, failed = [], []
    for method in config.sweep.methods:
        for k in config.sweep.ks:
            folder = cell_folder(workdir, method, k)
            for seed in config.sweep.seeds:
                path = run_folder(workdir, method, k, seed) / FINISHED
                if path.exists():
                    cells.append({"method": method, "k": k, "seed": seed, **read_json(path)})
            if (folder / FAILURE).exists():
                failures = read_json(folder / FAILURE)
                failed += [{"method": method, "k": k, "seed": seed, "error": text} for seed, text in failures.items()]
    return {"cells": cells, "failed": failed}


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run_cells(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    """Runs what is not finished, cell by cell."""
    order = [(method, k) for k in config.sweep.ks for method in config.sweep.methods]
    finished: list[pathlib.Path] = []
    told: set[str] = set()
    for number, (method, k) in enumerate(order, start=1):
        folder = cell_folder(workdir, method, k)
        places = [run_folder(workdir, method, k, seed) for seed in config.sweep.seeds]
        title = f"cell {number} of {len(order)}: {method}, k = {k}, {len(places)} seeds"
        if all([exists_on_first(place / FINISHED) for place in places]):
            print(f"{title}: finished")
            finished += places
            continue
        print(title)
        exit_if_told()
        began = time.monotonic()
        try:
            runs = prepare_cell(config, method, k, workdir)
            for note in dict.fromkeys(note for run in runs for note in run.task.notes if note not in told):
                print(f"note: {note}")
                told.add(note)
            for run in runs:
                share_predictions(run, finished)
            failures = run_cell(runs, folder)
        except Exception as error:  # whatever ends a cell, the others go on
            raise_where_others_wait(error)
            traceback.print_exc()
            failures = dict.fromkeys(config.sweep.seeds, describe(error))
        if failures:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / FAILURE, failures)
            print(f"{title}: failed: {failures}", file=sys.stderr)
        else:
            if is_first():
                (folder / FAILURE).unlink(missing_ok=True)
            print(f"{title}: {time.monotonic() - began:.0f} seconds")
        finished += [place for place in places if exists_on_first(place / FINISHED)]
        write_json(workdir / SUMMARY, summarise(config, workdir))


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    config, workdir = experiment.config("configs/sweeps/arithmetic.py"), experiment.workdir()
    check_sweep(config)
    exit_on_sigterm()
    check_workdir(workdir, config)
    first = cell_config(config, config.sweep.methods[0], config.sweep.ks[0], config.sweep.seeds[0])
    read = fingerprint(load_task(first.task, first.seed), model_folders(first))
    check_same_everywhere({"the configs": json.dumps(plain_config(config)), "the data or weights": read})
    open_workdir(workdir, config, "rdjax.sweep", read)
    run_cells(config, workdir)
    summary = summarise(config, workdir)
    write_json(workdir / SUMMARY, summary)
    if any(cell["splits"] for cell in summary["cells"]):
        print(markdown(sweep_table(summary["cells"])))
    print(f"wrote {write_page(workdir)}")
    if broadcast_from_first(len(summary["failed"])):
        names = "; ".join("{method}, k = {k}, seed {seed}: {error}".format(**cell) for cell in summary["failed"])
        print(f"failed: {names}. The same command tries them again.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
