"""Batches: pairs packed into rows, with loss weights that already hold the reduction."""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions, SlotLists, aligned_positions, predict_positions, slot_lists
from rdjax.data.prefix import student_prompts, teacher_prompts
from rdjax.data.shapes import Extent, Shape, deal

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
    dropout_ids_BT: np.ndarray
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


def stack_members(members: Iterable[Any]) -> Any:
    """Trees of host arrays, one a member, as one tree whose arrays have the members first, [M, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *members)


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
    slots: LossPositions,
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
        predict.append([[start + at for at in predict_positions(pair, end, slots)] for pair, end, start in laid])
        aligned.append([[start + at for at in aligned_positions(pair, end, slots)] for pair, end, start in laid])
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


def places_in_rows(numbers: Sequence[int], begins: np.ndarray, rows: int, width: int) -> np.ndarray:
    """The slots of the numbered pairs where a batch of them has them, [rows, width]; padding shows the first."""
    dealt = [[range(begins[number], begins[number + 1]) for number in row] for row in deal(numbers, rows)]
    return _in_rows(dealt, width, 0)


def collate(pairs: Sequence[Pair], rows: int, shape: Shape, slots: LossPositions, eos: int) -> Batch:
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
