"""Logs the numbers of a run: to metrics.jsonl, TensorBoard events and a progress bar."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import tqdm
from tensorboardX import SummaryWriter

from rdjax.parallel.processes import exists_on_first, is_first
from rdjax.storage.files import parse_json, read_text, write_lines
from rdjax.storage.records import of_form
from rdjax.storage.trackers import start_trackers

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends scalars to `<workdir>/metrics.jsonl`, to TensorBoard event files beside it, and to trackers.

    Raises:
      UserError: a tracker cannot be used.
    """

    def __init__(self, workdir: pathlib.Path, trackers: Sequence[str] = ()):
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / METRICS
        self._trackers = start_trackers(trackers, workdir) if is_first() else []
        self._events = SummaryWriter(str(workdir / "tensorboard")) if is_first() else None

    def write(self, stage: str, step: int, scalars: dict[str, float]) -> None:
        """Appends a line {"stage", "step", ...}, and the same scalars as events named `stage/name`."""
        if self._events is None:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(f"{stage}/{name}", value, step)
        for tracker in self._trackers:
            tracker.log(step, {f"{stage}/{name}": value for name, value in scalars.items()})

    def truncate(self, stage: str, last_step: int) -> None:
        """Drops the lines of a stage after `last_step`, that of the checkpoint from which the run resumes."""
        if not exists_on_first(self.path):
            return
        kept = [line for line in read_metrics(self.path) if line["stage"] != stage or line["step"] <= last_step]
        write_lines(self.path, kept)

    def close(self) -> None:
        """Closes the file of TensorBoard events, and ends the trackers' runs."""
        for tracker in self._trackers:
            tracker.finish()
        if self._events is not None:
            self._events.close()


class Line(msgspec.Struct):
    """Describes what every line of metrics.jsonl has, beside its numbers."""

    stage: str
    step: int


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl; a last line that a kill has cut off is left out, and a file that does not exist has none.

    Raises:
      UserError: another line is damaged.
    """
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(read_text(path, f"{path}: not found").split("\n")[:-1], start=1):
        where = f"{path}, line {number}"
        line = parse_json(text, where)
        of_form(line, Line, where, advice="delete this line")
        lines.append(of_form(line, dict[str, str | float | int | None], where, advice="delete this line"))
    return lines


def student_lines(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of the student's training; of a learning rate that was replaced and of short trials, none."""
    stages = [line["stage"] for line in lines if line["stage"].startswith("student") and "_trial_" not in line["stage"]]
    return [line for line in lines if line["stage"] == stages[-1]] if stages else []


def progress_bar(total: int, start: int, title: str, unit: str = "step") -> tqdm.tqdm:
    """Returns a progress bar with rate and time left; only the first process displays it."""
    return tqdm.tqdm(
        total=total,
        initial=start,
        desc=title,
        unit=unit,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=not is_first(),
    )


def advance(bar: tqdm.tqdm, metrics: dict[str, Any] | None) -> None:
    """Advances the bar by one step and displays the mean loss, unless there are no metrics yet."""
    if metrics is not None:
        bar.set_postfix(loss=f"{float(np.mean(metrics['loss'])):.4g}", refresh=False)
    bar.update()
