"""Trains runs of one config side by side over one copy of the model: the seeds of a sweep, or several rules."""

import collections
import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax

from rdjax.distillation.finite import DivergedError
from rdjax.distillation.programs import release_programs
from rdjax.errors import UserError, describe
from rdjax.models.lora import Adapter
from rdjax.parallel.processes import exists_on_first
from rdjax.run.experiment import Run
from rdjax.run.pipeline import evaluate_all, train_all
from rdjax.storage.records import write_record
from rdjax.storage.workdir import RESULTS

TrainedRun = tuple[Run, dict[str, Adapter]]
Name = TypeVar("Name", int, str)
CHECKPOINTS = "checkpoints"  # folder of runs together; each run has a folder beside it


def checkpoint_folder(workdir: pathlib.Path, runs: Sequence[Run]) -> pathlib.Path:
    """Returns the folder of the common checkpoints of runs; of some of them alone it is another."""
    names = "/".join(run.workdir.name for run in runs)
    return workdir / CHECKPOINTS / hashlib.sha256(names.encode()).hexdigest()[:12]


def prepare_runs(
    names: Iterable[Name], prepare_one: Callable[[Name], Run], workdir: pathlib.Path
) -> tuple[list[Run], dict[Name, str]]:
    """Prepares runs that train side by side.

    Finished runs are among them while there are checkpoints of all: the others resume from these.

    Args:
      names: seeds, or rules.
      prepare_one: prepares the run of a name.
      workdir: the folder of their common checkpoints.

    Returns:
      The runs, and the errors of those that cannot be prepared, by name.
    """
    runs, failures = [], {}
    for name in names:
        try:
            runs.append(prepare_one(name))
        except UserError as error:  # such as a damaged folder, or responses that nothing confirms
            raise_if_others_wait(error)
            failures[name] = first_line(error)
    if not exists_on_first(checkpoint_folder(workdir, runs)):
        runs = [run for run in runs if not exists_on_first(run.workdir / RESULTS)]
    return runs, failures


def finish_runs(
    runs: Sequence[Run], checkpoints: pathlib.Path, before_evaluation: Callable[[Run], None] = lambda run: None
) -> dict[str, str]:
    """Trains and evaluates runs, and closes their logs; those with equally many pairs train side by side.

    Args:
      runs: they differ in their seed or their task, and each has a folder of its own name.
      checkpoints: the folder of their common checkpoints.
      before_evaluation: called with each run that is to be evaluated.

    Returns:
      The errors, by the names of the runs' folders.
    """
    groups = collections.defaultdict(list)
    for run in runs:
        groups[group_name(run)].append(run)
    failures: dict[str, str] = {}
    try:
        for name, group in groups.items():
            release_programs()
            for run, adapters in train_runs(group, checkpoints, name, failures):
                evaluate_run(run, adapters, before_evaluation, failures)
    finally:
        for run in runs:
            run.log.close()
    return failures


def evaluate_run(
    run: Run, adapters: dict[str, Adapter], before_evaluation: Callable[[Run], None], failures: dict[str, str]
) -> None:
    """Evaluates a run that is not finished; `failures` gets its error, and the other runs continue."""
    try:
        if not exists_on_first(run.workdir / RESULTS):
            before_evaluation(run)
            write_record(run.workdir / RESULTS, evaluate_all(run, adapters))
    except Exception as error:  # such as a judge that fails, or memory that runs out
        raise_if_others_wait(error)
        failures[run.workdir.name] = first_line(error)


def group_name(run: Run) -> str:
    """Returns a name for all runs that can train side by side: with as many pairs of each kind, validated alike."""
    retained = "".join(f"_{split}{len(pairs)}" for split, pairs in run.retained.items())
    return f"{len(run.train)}_{len(run.valid)}{retained}{'_gold' if run.valid_is_gold else ''}"


def train_runs(
    runs: Sequence[Run], checkpoints: pathlib.Path, name: str, failures: dict[str, str]
) -> Iterator[TrainedRun]:
    """Trains runs side by side or, where that fails, one by one: one may diverge, or memory may be too small.

    Args:
      name: of the folder of their common checkpoints.
      failures: gets the errors, by the names of the runs' folders.

    Yields:
      The runs that were trained, with their adapters.
    """
    try:
        yield from zip(runs, train_all(runs, checkpoints / name), strict=True)
        return
    except Exception as error:
        raise_if_others_wait(error)
        if len(runs) == 1:
            failures[runs[0].workdir.name] = first_line(error)
            return
        print(f"side by side: {first_line(error)}; one by one then", file=sys.stderr)
    for run in runs:
        if not exists_on_first(run.workdir / RESULTS):
            yield from train_runs([run], checkpoints, run.workdir.name, failures)


def raise_if_others_wait(error: Exception) -> None:
    """Raises an error again that only one of several processes may have met, because the others would wait for it.

    A `DivergedError` reaches all of them: they have the same losses.
    """
    if jax.process_count() > 1 and not isinstance(error, DivergedError):
        raise error


def first_line(error: BaseException) -> str:
    """Returns the first line of an error: those of XLA have hundreds."""
    return (describe(error).splitlines() or [""])[0]
