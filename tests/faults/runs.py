"""Makes runs that a fault comes upon: whole ones, and ones that ended in the middle."""

import contextlib
import itertools
import pathlib

import pytest

from configs import base
from rdjax import train
from rdjax.distillation import stage
from rdjax.parallel.processes import EXIT_RERUN
from tests.commands import ROWS, RULE, run_command, write_rows

SETTINGS = (
    "--config.task.name=rule",
    "--config.task.k=0",
    "--config.task.responses=teacher",
    "--config.train.epochs=6",
    "--config.train.teacher_signals=disk",
    "--config.eval.max_new_tokens=4",
    "--config.eval.systems=('base','student')",
    "--config.lora.rank=4",
    "--config.lora.dropout=0.1",
    "--config.optimizer.learning_rate=1e-2",
)


def write_task(root: pathlib.Path) -> pathlib.Path:
    """Writes a task folder."""
    root.mkdir()
    (root / "rule.md").write_text(RULE)
    for name in ("train", "valid", "test"):
        write_rows(root / f"{name}.jsonl", ROWS)
    return root


def arguments(model: pathlib.Path, root: pathlib.Path, workdir: pathlib.Path) -> tuple[str, ...]:
    """Returns the arguments of rdjax.train."""
    paths = (f"--config.model.path={model}", f"--config.task.root={root}", f"--workdir={workdir}")
    return (f"--config={base.__file__}", *paths, *SETTINGS)


def run_whole(model: pathlib.Path, root: pathlib.Path, workdir: pathlib.Path) -> None:
    """Runs to the end."""
    assert run_command(train.main, *arguments(model, root, workdir)) == 0


def run_in_part(model: pathlib.Path, root: pathlib.Path, workdir: pathlib.Path) -> None:
    """Runs until after update 9 of 12: two checkpoints, responses and signals are on disk."""
    asked = itertools.count(1)
    signals = contextlib.nullcontext(lambda: EXIT_RERUN if next(asked) == 9 else 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "deferred_signals", lambda: signals)
        assert run_command(train.main, *arguments(model, root, workdir)) == EXIT_RERUN


def adapter_of(workdir: pathlib.Path) -> bytes:
    """Returns the file of a run's adapter."""
    return (workdir / "adapter" / "adapter_model.safetensors").read_bytes()
