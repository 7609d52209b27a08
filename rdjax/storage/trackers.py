"""Sends a run's numbers to the services that a user asked for: Weights & Biases, MLflow."""

import hashlib
import importlib
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

from rdjax.errors import UserError


class Tracker(NamedTuple):
    """Holds a service's run.

    Attributes:
      log: takes a step and its numbers by name.
      finish: ends the run.
    """

    log: Callable[[int, dict[str, float]], None]
    finish: Callable[[], None]


def wandb_tracker(wandb: ModuleType, workdir: pathlib.Path) -> Tracker:
    """Begins a run of Weights & Biases, or continues the one of this folder."""
    # create_new: several runs are open at once, one for each seed of a sweep or each rule of `rdjax.train_each`.
    run = wandb.init(name=workdir.name, id=_run_id(workdir), resume="allow", reinit="create_new", dir=str(workdir))
    return Tracker(lambda step, numbers: run.log({**numbers, "step": step}), run.finish)


def mlflow_tracker(mlflow: ModuleType, workdir: pathlib.Path) -> Tracker:
    """Begins a run of MLflow; several can be open, one for each seed of a sweep."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("rdjax")
    number = experiment.experiment_id if experiment else client.create_experiment("rdjax")
    run = client.create_run(number, run_name=workdir.name).info.run_id

    def log(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            client.log_metric(run, name, value, step=step)

    return Tracker(log, lambda: client.set_terminated(run))


TRACKERS: dict[str, Callable[[ModuleType, pathlib.Path], Tracker]] = {"wandb": wandb_tracker, "mlflow": mlflow_tracker}


def start_trackers(names: Sequence[str], workdir: pathlib.Path) -> list[Tracker]:
    """Starts trackers by the names of their packages.

    Raises:
      UserError: a package is not installed, or its service cannot be used.
    """
    started = []
    for name in names:
        try:
            package = importlib.import_module(name)
        except ImportError:
            raise UserError(f"config.log.trackers: {name} is not installed; pip install {name}") from None
        try:
            started.append(TRACKERS[name](package, workdir))
        except Exception as error:  # the packages raise their own exceptions, most often for want of a login
            raise UserError(f"config.log.trackers: {name} cannot be used ({error})") from None
    return started


def _run_id(workdir: pathlib.Path) -> str:
    """Returns an id for the run of a folder: the same whenever it resumes, another for any other folder."""
    path = workdir.absolute()
    digest = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:12]
    return "-".join([*(part for part in path.parts[-2:] if part.strip("/")), digest])
