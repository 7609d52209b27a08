"""Logs the numbers of a run: to metrics.jsonl, TensorBoard events and a progress bar."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from tensorboardX import SummaryWriter

from rdjax.parallel.processes import exists_on_first, is_first
from rdjax.storage.files import write_lines
from rdjax.storage.trackers import start_trackers


class MetricsLog:
    """Appends scalars to `<workdir>/metrics.jsonl`, to TensorBoard event files beside it, and to trackers.

    Raises:
      UserError: a tracker cannot be used.
    """

    def __init__(self, workdir: pathlib.Path, trackers: Sequence[str] = ()):
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / "metrics.jsonl"
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
        lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= last_step]
        write_lines(self.path, kept)

    def close(self) -> None:
        """Closes the file of TensorBoard events, and ends the trackers' runs."""
        for tracker in self._trackers:
            tracker.finish()
        if self._events is not None:
            self._events.close()


def progress(total: int, start: int, title: str, unit: str = "step") -> tqdm.tqdm:
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


def show(bar: tqdm.tqdm, metrics: dict[str, Any] | None) -> None:
    """Advances the bar by one step and displays the mean loss, unless there are no metrics yet."""
    if metrics is not None:
        bar.set_postfix(loss=f"{float(np.mean(metrics['loss'])):.4g}", refresh=False)
    bar.update()
