"""Sends a run's numbers to the services that a user asked for: Weights & Biases, MLflow."""

import importlib
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType

from rdjax.errors import UserError

Tracker = Callable[[int, dict[str, float]], None]  # takes a step and its numbers by name


def wandb_tracker(wandb: ModuleType, workdir: pathlib.Path) -> Tracker:
    """Begins a run of Weights & Biases, or continues the one of this folder."""
    run = wandb.init(name=workdir.name, id=_run_name(workdir), resume="allow", dir=str(workdir))
    return lambda step, numbers: run.log({**numbers, "step": step})


def mlflow_tracker(mlflow: ModuleType, workdir: pathlib.Path) -> Tracker:
    """Begins a run of MLflow."""
    mlflow.start_run(run_name=workdir.name)
    return lambda step, numbers: mlflow.log_metrics(numbers, step=step)


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


def _run_name(workdir: pathlib.Path) -> str:
    """Returns a name for the run of a folder that is the same whenever it resumes."""
    return "-".join(part for part in workdir.absolute().parts[-2:] if part.strip("/"))
