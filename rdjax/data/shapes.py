"""Chooses the padded sizes of batches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions, aligned_positions, predict_positions
from rdjax.data.prefix import Prefixes, student_prompts, teacher_prompts

# Padded sizes of a stage's updates, each a program to compile: a further one must save this share of all tokens, and as
# many as these updates have, for which it would take as long (7 seconds for updates of 0.28, on a CPU).
MOST_SHAPES, SHAPE_PAYS, COMPILING_TAKES = 3, 0.1, 25


class Extent(NamedTuple):
    """Sizes of one side."""

    tokens: int  # of a row, T
    longest: int  # sequence, U
    prefix: int = 0  # leading tokens of the prompts that all share and the batch leaves out (`shared_prefix`)


class Shape(NamedTuple):
    """Padded sizes of a batch."""

    teacher: Extent
    student: Extent
    predict: int  # slots of a row, P
    aligned: int  # Q
    sequences: int  # of a row, E


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is no less than `number`."""
    return -(-number // step) * step


def in_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in turn, `size` at a time; the last batch may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def deal(pairs: Sequence[Any], rows: int) -> list[Sequence[Any]]:
    """Pairs to rows in turn order: as many to each, the last ones fewer or none."""
    each = -(-len(pairs) // rows)
    return [pairs[row * each : (row + 1) * each] for row in range(rows)]


def coarsened(shape: Shape) -> Shape:
    """A shape up to an eighth larger, of which there are few: batches of much the same size come to share one."""

    def size(number: int) -> int:
        return round_up(number, max(8, 2 ** (number.bit_length() - 4)))

    def extent(side: Extent) -> Extent:
        return side._replace(tokens=size(side.tokens), longest=size(side.longest))

    return shape._replace(
        teacher=extent(shape.teacher),
        student=extent(shape.student),
        predict=size(shape.predict),
        aligned=size(shape.aligned),
    )


def batch_shape(batches: Iterable[Sequence[Pair]], rows: int, slots: LossPositions, prefixes: Prefixes) -> Shape:
    """The smallest shape, in steps of 8, that holds each of the batches in `rows` rows."""
    dealt = [row for pairs in batches for row in deal(pairs, rows)]

    def most(sizes: Callable[[Sequence[Pair]], Iterable[int]], join: Callable[[Iterable[int]], int]) -> int:
        return round_up(max(join(sizes(row)) for row in dealt), 8)

    def extent(prompts: Callable[[Sequence[Pair]], list[tuple[int, ...]]], prefix: int) -> Extent:
        def lengths(row: Sequence[Pair]) -> list[int]:
            both = zip(prompts(row), row, strict=True)
            return [len(prompt) + len(pair.response_ids) - prefix for prompt, pair in both]

        return Extent(most(lengths, sum), most(lambda row: [0, *lengths(row)], max), prefix)

    return Shape(
        extent(teacher_prompts, prefixes.teacher),
        extent(student_prompts, prefixes.student),
        most(lambda row: [len(predict_positions(pair, len(pair.prompts.student_ids), slots)) for pair in row], sum),
        most(lambda row: [len(aligned_positions(pair, len(pair.prompts.student_ids), slots)) for pair in row], sum),
        max(map(len, dealt)),
    )


def few_sizes(sizes: Sequence[int]) -> list[int]:
    """Up to `MOST_SHAPES` limits, rising, so that little is padded where everything is padded to the next of them.

    A further one has to save a share `SHAPE_PAYS` of all, and `COMPILING_TAKES` times the largest.
    """
    values, counts = np.unique(sizes, return_counts=True)
    limits, cost = [int(values[-1])], int(values[-1]) * len(sizes)
    while len(limits) < MOST_SHAPES:
        tried = {int(value): sorted([*limits, int(value)]) for value in values[:-1]}
        costs = {value: int(np.sum(np.array(t)[np.searchsorted(t, values)] * counts)) for value, t in tried.items()}
        best = min(costs, key=costs.__getitem__, default=None)
        if best is None or cost - costs[best] < max(SHAPE_PAYS * cost, COMPILING_TAKES * limits[-1]):
            break
        limits, cost = tried[best], costs[best]
    return limits
