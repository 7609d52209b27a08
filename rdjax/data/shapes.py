"""Chooses the padded sizes of batches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions, count_positions
from rdjax.data.prefix import SharedPrefix

# Every shape is a program to compile. A further one must save this share of all tokens, and as many tokens as this
# number of updates has: compiling takes as long as they do (7 seconds for updates of 0.28 seconds, on a CPU).
MOST_SHAPES, LEAST_SAVING, COMPILING_TAKES = 3, 0.1, 25


class SideShape(NamedTuple):
    """Holds the padded sizes of one side of a batch.

    Attributes:
      tokens: of a row, T.
      longest: tokens of the longest sequence, U.
      prefix: leading tokens that the batch leaves out because all prompts share them, C.
    """

    tokens: int
    longest: int
    prefix: int = 0


class BatchShape(NamedTuple):
    """Holds the padded sizes of a batch.

    Attributes:
      predictions: prediction positions of a row, P.
      aligned: aligned positions of a row, Q.
      sequences: of a row, E.
    """

    teacher: SideShape
    student: SideShape
    predictions: int
    aligned: int
    sequences: int


def round_up(number: int, step: int) -> int:
    """Returns the smallest multiple of `step` that is no less than `number`."""
    return -(-number // step) * step


def fine(size: int) -> int:
    """Rounds up to a multiple of 8."""
    return round_up(size, 8)


def coarse(size: int) -> int:
    """Rounds up to one of few sizes, by an eighth at most, so that batches of about the same size share a program."""
    size = fine(size)
    return round_up(size, max(8, 2 ** (size.bit_length() - 4)))


def in_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Splits items into batches of `size`, in order; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def even_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Splits items into as few batches of at most `size` as are needed, equally large but for the last."""
    count = -(-len(items) // size)
    return in_batches(items, -(-len(items) // count)) if items else []


def deal(items: Sequence[Any], rows: int) -> list[Sequence[Any]]:
    """Splits items into `rows` rows, in order: as many to each, the last rows fewer or none."""
    per_row = -(-len(items) // rows)
    return [items[row * per_row : (row + 1) * per_row] for row in range(rows)]


def batch_shape(
    batches: Iterable[Sequence[Pair]],
    rows: int,
    positions: LossPositions,
    prefix: SharedPrefix,
    round_size: Callable[[int], int] = fine,
) -> BatchShape:
    """Returns the smallest shape that holds each of the batches in `rows` rows.

    Args:
      round_size: `fine` or `coarse`.
    """
    dealt = [row for pairs in batches for row in deal(pairs, rows)]

    def side_shape(side: str) -> SideShape:
        prefix_length = len(getattr(prefix, side))
        lengths = [
            [len(getattr(pair.prompts, f"{side}_ids")) - prefix_length + len(pair.response_ids) for pair in row]
            for row in dealt
        ]
        longest = max(length for row in lengths for length in row)
        return SideShape(round_size(max(map(sum, lengths))), round_size(longest), prefix_length)

    counts = [[count_positions(pair, positions) for pair in row] for row in dealt]
    predictions, aligned = (max(sum(pair[part] for pair in row) for row in counts) for part in range(2))
    return BatchShape(
        side_shape("teacher"),
        side_shape("student"),
        round_size(predictions),
        round_size(aligned),
        max(map(len, dealt)),
    )


def choose_sizes(sizes: Sequence[int]) -> list[int]:
    """Chooses up to `MOST_SHAPES` sizes, in rising order, to pad each of `sizes` to the next of them with little waste.

    A further size has to save the share `LEAST_SAVING` of all, and `COMPILING_TAKES` times the largest.
    """
    values, counts = np.unique(sizes, return_counts=True)
    chosen, cost = [int(values[-1])], int(values[-1]) * len(sizes)
    while len(chosen) < MOST_SHAPES:
        candidates = {int(value): sorted([*chosen, int(value)]) for value in values[:-1]}
        costs = {
            value: int(np.sum(np.array(limits)[np.searchsorted(limits, values)] * counts))
            for value, limits in candidates.items()
        }
        best = min(costs, key=costs.__getitem__, default=None)
        if best is None or cost - costs[best] < max(LEAST_SAVING * cost, COMPILING_TAKES * chosen[-1]):
            break
        chosen, cost = candidates[best], costs[best]
    return chosen


def choose_shapes(shapes: Sequence[BatchShape], side: str) -> list[BatchShape]:
    """Chooses the few shapes that all batches are padded to; none where there is no batch (train.updates = 0).

    Args:
      shapes: the smallest shape of every batch.
      side: whose tokens decide: "teacher" or "student", the one that the program reads.
    """
    tokens = [getattr(shape, side).tokens for shape in shapes]
    limits = choose_sizes(tokens) if tokens else []
    groups: dict[int, list[BatchShape]] = {limit: [] for limit in limits}
    for shape, size in zip(shapes, tokens, strict=True):
        groups[next(limit for limit in limits if size <= limit)].append(shape)
    return [_largest(group) for group in groups.values()]


def fits(shape: BatchShape, other: BatchShape) -> bool:
    """Says whether every size of `shape` is at most that of `other`."""
    return _largest([shape, other]) == other


def _largest(shapes: Sequence[BatchShape]) -> BatchShape:
    """Returns the largest of each size."""
    teacher, student = (
        SideShape(*map(max, zip(*(getattr(shape, side) for shape in shapes), strict=True)))
        for side in ("teacher", "student")
    )
    return BatchShape(teacher, student, *map(max, zip(*(shape[2:] for shape in shapes), strict=True)))
