"""Times the first updates of a stage, to tell how long all of them take."""

import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
from ml_collections import config_dict

from rdjax.distillation.job import Member, Stage, load_signals, make_job
from rdjax.distillation.progress import initial_progress
from rdjax.distillation.updates import fetch_updates, put_update
from rdjax.models.load import LanguageModel

TIMED = 4  # updates, after the first one, which also compiles


class Trial(NamedTuple):
    """Holds what a few updates say about all.

    Attributes:
      preparing: seconds for the teachers' signals and for compiling.
      update: seconds of one update, the fastest of a few.
      updates: of the whole stage, at most.
    """

    preparing: float
    update: float
    updates: int


def try_updates(
    stage: Stage,
    model: LanguageModel,
    members: Sequence[Member],
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
) -> Trial:
    """Takes the first updates of a stage and times them; keeps nothing but signals that are cached on disk.

    Args:
      config: as for `run_stage`.
      folder: of signals that are cached on disk.
    """
    began = time.monotonic()
    job = make_job(stage, model, members, config, folder)
    reached = initial_progress([member.initial for member in members], job.optimizer, model.mesh)
    job = load_signals(job, reached.state, folder)
    times, state = [time.monotonic()], reached.state
    for fetched in fetch_updates(job.loaders, job.updates[: TIMED + 1]):
        state, metrics = job.step(state, model.base, put_update(job.loaders, fetched), job.seeds_M)
        jax.block_until_ready(metrics)
        times.append(time.monotonic())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    return Trial(times[1] - began, min(seconds[1:] or seconds), len(job.updates))
