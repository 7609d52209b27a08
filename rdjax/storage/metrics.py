"""Where numbers go while a run works: metrics.jsonl, TensorBoard events and the progress bar."""

import json
import pathlib
from typing import Any

import numpy as np
import tqdm
from tensorboardX import SummaryWriter

from rdjax.parallel.processes import exists_on_first, is_first
from rdjax.storage.files import write_lines


class MetricsLog:
    """Appends scalars to `<workdir>/metrics.jsonl` and to TensorBoard event files beside it."""

    def __init__(self, workdir: pathlib.Path):
        workdir.mkdir(parents=True, exist_ok=True)
        self.path = workdir / "metrics.jsonl"
        self._events = SummaryWriter(str(workdir / "tensorboard")) if is_first() else None

    def write(self, stage: str, step: int, scalars: dict[str, float]) -> None:
        """One line {"stage", "step", ...}; the same scalars as events named `stage/name`."""
        if self._events is None:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(f"{stage}/{name}", value, step)

    def truncate(self, stage: str, after_step: int) -> None:
        """Drops the lines of a stage later than the checkpoint that a run resumes from."""
        if not exists_on_first(self.path):
            return
        lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= after_step]
        write_lines(self.path, kept)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


def progress(total: int, start: int, title: str, unit: str = "step") -> tqdm.tqdm:
    """A progress bar, with rate and time left; of several processes the first shows it."""
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
    """Advances the bar by one step and shows the (mean) loss among `metrics`, if there are any yet."""
    if metrics is not None:
        bar.set_postfix(loss=f"{float(np.mean(metrics['loss'])):.4g}", refresh=False)
    bar.update()
