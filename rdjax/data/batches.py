"""Batches: pairs packed into rows, with loss weights that already hold the reduction."""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rdjax.data.pairs import Pair

# A shared prefix of fewer tokens is read in every row: reading it once would save little.
PREFIX_PAYS = 16

# Padded sizes of a stage's updates, each a program to compile: a further one must save this share of all tokens, and as
# many as these updates have, for which it would take as long (7 seconds for updates of 0.28, on a CPU).
MOST_SHAPES, SHAPE_PAYS, COMPILING_TAKES = 3, 0.1, 25

# More than any sequence has tokens.
DRAWS_A_PAIR = 2**16


class Side(NamedTuple):
    """One of the two sequences of each pair, several packed into a row behind one another.

    Attributes:
      tokens_BT: prompts and responses, less the prefix where all share one; padding at the row's end.
      positions_BT: rotary positions; every sequence counts on from the end of the prefix.
      draws_BT: a number for each token of an update, by which its dropout is drawn: it follows from the pair's number
        in the update and the token's place in the pair, however pairs are dealt to rows.
      pack_BT, unpack_BEU: where the sequences of a row lie (`models.decoder.Packing`).
      predict_BP: where the logits of the responses are read, as places in `tokens_BT`.
      aligned_BQ: where hidden states are compared, likewise.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    draws_BT: np.ndarray
    pack_BT: np.ndarray
    unpack_BEU: np.ndarray
    predict_BP: np.ndarray
    aligned_BQ: np.ndarray


class Batch(NamedTuple):
    """Aligned pairs, packed alike on both sides.

    Attributes:
      teacher, student: the two sides; P and Q slots mean the same on both.
      labels_BP: the token that each prediction position predicts.
      weight_BP, hidden_weight_BQ: loss weight of each slot; 0 pads (`as_update` makes them sum to 1).
    """

    teacher: Side
    student: Side
    labels_BP: np.ndarray
    weight_BP: np.ndarray
    hidden_weight_BQ: np.ndarray


class Slots(NamedTuple):
    """Which positions of a pair enter the losses."""

    variant: str  # "ours" or "published" (METHOD: unshifted positions, no end token)
    hidden_positions: str  # "response" or "shared"
    reduction: str  # "token" or "sample"


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


def _predict(pair: Pair, prompt: int, slots: Slots) -> list[int]:
    """Positions whose logits predict the response: from the last prompt token on, shifted by one for `published`."""
    if slots.variant == "published":
        return list(range(prompt, prompt + len(pair.response_ids)))
    return list(range(prompt - 1, prompt + len(pair.response_ids) - (not pair.ended)))


def _aligned(pair: Pair, prompt: int, slots: Slots) -> list[int]:
    predict = _predict(pair, prompt, slots)
    if slots.hidden_positions == "response":
        return predict
    return list(range(min(prompt - pair.prompts.shared, predict[0]), predict[-1] + 1))


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is no less than `number`."""
    return -(-number // step) * step


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, in steps of 8; 0 where reading them once would not pay.

    Every prompt keeps at least one token of its own.
    """
    ids = [tuple(prompt) for prompt in prompts]
    # What the first and the last in order share, all share.
    both = zip(min(ids), max(ids), strict=False)
    common = len([*itertools.takewhile(lambda pair: pair[0] == pair[1], both)])
    length = min(common, *(len(prompt) - 1 for prompt in prompts)) // 8 * 8
    return length if length >= PREFIX_PAYS else 0


def teacher_prompts(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    return [pair.prompts.teacher_ids for pair in pairs]


def student_prompts(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    return [pair.prompts.student_ids for pair in pairs]


def in_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in turn, `size` at a time; the last batch may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def stack_members(members: Iterable[Any]) -> Any:
    """Trees of host arrays, one a member, as one tree whose arrays have the members first, [M, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *members)


def deal(pairs: Sequence[Any], rows: int) -> list[Sequence[Any]]:
    """Pairs to rows in turn order: as many to each, the last ones fewer or none."""
    each = -(-len(pairs) // rows)
    return [pairs[row * each : (row + 1) * each] for row in range(rows)]


class Prefixes(NamedTuple):
    """How many leading tokens of the teacher's and of the student's prompts a batch leaves out, for all share them."""

    teacher: int = 0
    student: int = 0


def pair_prefixes(pairs: Sequence[Pair], slots: Slots) -> Prefixes:
    """`shared_prefix` of both prompts, less what the losses read."""

    def one(prompts: Sequence[tuple[int, ...]]) -> int:
        ends = [_aligned(pair, len(prompt), slots)[0] for pair, prompt in zip(pairs, prompts, strict=True)]
        return shared_prefix([prompt[: end + 1] for prompt, end in zip(prompts, ends, strict=True)])

    return Prefixes(one(teacher_prompts(pairs)), one(student_prompts(pairs)))


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


def batch_shape(batches: Iterable[Sequence[Pair]], rows: int, slots: Slots, prefixes: Prefixes) -> Shape:
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
        most(lambda row: [len(_predict(pair, len(pair.prompts.student_ids), slots)) for pair in row], sum),
        most(lambda row: [len(_aligned(pair, len(pair.prompts.student_ids), slots)) for pair in row], sum),
        max(map(len, dealt)),
    )


def _in_rows(dealt: Sequence[Sequence[Sequence[Any]]], width: int, padding: Any, dtype: Any = np.int32) -> np.ndarray:
    """Lists of each pair of each row, one behind the other, padded to [rows, width]."""
    made = np.full((len(dealt), width), padding, dtype)
    for row, lists in enumerate(dealt):
        joined = [*itertools.chain(*lists)]
        made[row, : len(joined)] = joined
    return made


def _side(
    dealt: Sequence[Sequence[Pair]],
    prompts: Callable[[Sequence[Pair]], list[tuple[int, ...]]],
    extent: Extent,
    shape: Shape,
    slots: Slots,
) -> Side:
    """One side of the pairs of each row."""
    sequences = [
        [prompt[extent.prefix :] + pair.response_ids for prompt, pair in zip(prompts(row), row, strict=True)]
        for row in dealt
    ]
    starts = [[*itertools.accumulate(map(len, row), initial=0)] for row in sequences]
    unpack_BEU = np.full((len(dealt), shape.sequences, extent.longest), -1, np.int32)
    predict, aligned = [], []
    for row, (pairs, own, begin) in enumerate(zip(dealt, sequences, starts, strict=True)):
        for number, (ids, start) in enumerate(zip(own, begin, strict=False)):
            unpack_BEU[row, number, : len(ids)] = range(start, start + len(ids))
        # Less the prefix, the places of what remains are the shorter prompt's.
        ends = [len(ids) - len(pair.response_ids) for ids, pair in zip(own, pairs, strict=True)]
        laid = [*zip(pairs, ends, begin, strict=False)]
        predict.append([[start + at for at in _predict(pair, end, slots)] for pair, end, start in laid])
        aligned.append([[start + at for at in _aligned(pair, end, slots)] for pair, end, start in laid])
    positions = [[range(extent.prefix, extent.prefix + len(ids)) for ids in row] for row in sequences]
    places = [
        [range(number * extent.longest, number * extent.longest + len(ids)) for number, ids in enumerate(row)]
        for row in sequences
    ]
    first = [*itertools.accumulate(map(len, dealt), initial=0)]
    draws = [
        [[number * DRAWS_A_PAIR + at for at in own] for number, own in enumerate(row, start)]
        for row, start in zip(positions, first, strict=False)
    ]
    return Side(
        _in_rows(sequences, extent.tokens, 0),
        _in_rows(positions, extent.tokens, 0),
        _in_rows(draws, extent.tokens, 0),
        _in_rows(places, extent.tokens, -1),
        unpack_BEU,
        _in_rows(predict, shape.predict, 0),
        _in_rows(aligned, shape.aligned, 0),
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


class Begins(NamedTuple):
    """At which of all slots those of each pair begin, and at last how many there are."""

    aligned: np.ndarray
    predict: np.ndarray


def slot_begins(pairs: Sequence[Pair], slots: Slots) -> Begins:
    """Where each pair's slots begin when those of all pairs stand one behind the other."""
    held = [slot_lists(pair, slots, eos=0) for pair in pairs]
    aligned, predict = [len(lists.hidden_weights) for lists in held], [len(lists.weights) for lists in held]
    return Begins(np.cumsum([0, *aligned]), np.cumsum([0, *predict]))


def places_in_rows(numbers: Sequence[int], begins: np.ndarray, rows: int, width: int) -> np.ndarray:
    """The slots of the numbered pairs where a batch of them has them, [rows, width]; padding shows the first."""
    dealt = [[range(begins[number], begins[number + 1]) for number in row] for row in deal(numbers, rows)]
    return _in_rows(dealt, width, 0)


class SlotLists(NamedTuple):
    """What the slots of a pair hold."""

    labels: list[int]
    weights: list[float]
    hidden_weights: list[float]


def slot_lists(pair: Pair, slots: Slots, eos: int) -> SlotLists:
    """Labels and weights of a pair's predictions, and the weights of its aligned positions."""
    prompt = len(pair.prompts.student_ids)
    predict, aligned = len(_predict(pair, prompt, slots)), len(_aligned(pair, prompt, slots))
    ended = [*pair.response_ids, eos]
    labels = ended[1:] if slots.variant == "published" else ended[:predict]
    by_sample = slots.reduction == "sample"
    return SlotLists(
        labels, [1 / predict if by_sample else 1.0] * predict, [1 / aligned if by_sample else 1.0] * aligned
    )


def collate(pairs: Sequence[Pair], rows: int, shape: Shape, slots: Slots, eos: int) -> Batch:
    """Packs pairs into `rows` rows of `shape`; what is left of a row is padding of weight 0."""
    dealt = deal(pairs, rows)
    held = [[slot_lists(pair, slots, eos) for pair in row] for row in dealt]
    labels, weights, hidden_weights = (
        [[getattr(lists, part) for lists in row] for row in held] for part in SlotLists._fields
    )
    return Batch(
        _side(dealt, teacher_prompts, shape.teacher, shape, slots),
        _side(dealt, student_prompts, shape.student, shape, slots),
        _in_rows(labels, shape.predict, 0),
        _in_rows(weights, shape.predict, 0, np.float32),
        _in_rows(hidden_weights, shape.aligned, 0, np.float32),
    )


def as_update(batch: Batch, accumulation: int) -> Batch:
    """A batch of A * B rows as micro-batches [A, B, ...] whose weights sum to 1 over all of them."""
    weights = batch.weight_BP / batch.weight_BP.sum(), batch.hidden_weight_BQ / batch.hidden_weight_BQ.sum()
    batch = batch._replace(weight_BP=weights[0], hidden_weight_BQ=weights[1])
    return jax.tree.map(lambda leaf: leaf.reshape(accumulation, -1, *leaf.shape[1:]), batch)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of samples in an epoch; it follows from seed and epoch alone."""
    order = list(range(count))
    random.Random(f"order-{seed}-{epoch}").shuffle(order)
    return order


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Updates an epoch takes; the last may be smaller."""
    return -(-count // batch_size)
