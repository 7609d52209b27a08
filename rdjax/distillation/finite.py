"""Ends a stage whose numbers are not finite. Single updates that are not are skipped by the step, and counted here."""

import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from rdjax.errors import UserError

MOST_SKIPPED = 5  # updates in a row
LOWER_RATE = "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"


class DivergedError(UserError):
    """Reports that training met numbers that are not finite."""


class StageLabel(NamedTuple):
    """Says where numbers come from: the stage, the seeds of its members, and the folder of its checkpoints."""

    stage: str
    seeds: Sequence[int]
    folder: pathlib.Path


def check_skipped(
    label: StageLabel,
    skipped_M: Sequence[int],
    in_row_M: Sequence[int],
    losses: Sequence[float],
    updates: int,
    last: bool,
) -> list[dict[str, float]]:
    """Counts the updates that were skipped, and prints their number, where there are any.

    Args:
      in_row_M: how many of them are the latest ones.
      losses: of the latest update.
      updates: done.
      last: whether that was the last one of all.

    Returns:
      For the metrics of each member its number as "skipped", or nothing.

    Raises:
      DivergedError: many in a row, or the last one of all, were skipped.
    """
    for seed, skipped, in_row, loss in zip(label.seeds, skipped_M, in_row_M, losses, strict=True):
        if in_row >= MOST_SKIPPED or (last and in_row):
            raise DivergedError(
                f"{label.stage}, seed {seed}: the last {in_row} updates up to update {updates} were not finite "
                f"(loss {loss}); {LOWER_RATE}{_kept_state(label)}"
            )
        if skipped:
            print(f"{label.stage}, seed {seed}: {skipped} updates skipped so far, which were not finite")
    return [{"skipped": float(skipped)} if skipped else {} for skipped in skipped_M]


def check_losses(label: StageLabel, losses: Sequence[float], when: str) -> None:
    """Raises `DivergedError` where a member's validation loss is not finite."""
    for seed, loss in zip(label.seeds, losses, strict=True):
        if not math.isfinite(loss):
            raise DivergedError(f"{label.stage}, seed {seed}: the validation loss is {loss} {when}{_kept_state(label)}")


def _kept_state(label: StageLabel) -> str:
    """Tells the folder of the last checkpoints, whose numbers are finite, if there are any."""
    return f"; the state before is kept in {label.folder}" if any(label.folder.glob("[0-9]*")) else ""
