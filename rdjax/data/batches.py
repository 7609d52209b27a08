"""Packs pairs into batches, with loss weights that already hold the reduction."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions, aligned_positions, pair_targets, prediction_positions
from rdjax.data.shapes import BatchShape, deal

# Dropout ids of a pair's tokens begin at its number times this: more than any sequence has tokens.
MOST_TOKENS = 2**16


class Side(NamedTuple):
    """Holds one of the two sequences of each pair, several packed one after the other into a row.

    Attributes:
      tokens_BT: prompts and responses without the shared prefix; padding at the row's end.
      positions_BT: rotary positions; every sequence counts on from the end of the prefix.
      dropout_ids_BT: the number from which a token's dropout mask is drawn: it follows from the pair's number in the
        update and the token's place in the pair, in whatever row the pair is.
      pack_BT, unpack_BEU: where the sequences of a row are (`models.packing.Packing`).
      predict_BP: the prediction positions, as indices into the row.
      aligned_BQ: the positions at which hidden states are compared, likewise.
    """

    tokens_BT: np.ndarray
    positions_BT: np.ndarray
    dropout_ids_BT: np.ndarray
    pack_BT: np.ndarray
    unpack_BEU: np.ndarray
    predict_BP: np.ndarray
    aligned_BQ: np.ndarray


class Batch(NamedTuple):
    """Holds pairs, packed alike on both sides.

    Attributes:
      teacher, student: the two sides; entry p of `predict_BP`, and entry q of `aligned_BQ`, is the same token on both.
      labels_BP: the token that each prediction position predicts.
      weight_BP, hidden_weight_BQ: the loss weight of each position; 0 is padding. `as_update` makes those of an
        update sum to the group's weight.
    """

    teacher: Side
    student: Side
    labels_BP: np.ndarray
    weight_BP: np.ndarray
    hidden_weight_BQ: np.ndarray


def fetch_ahead(fetch: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yields what `fetch` makes of each item; a thread fetches the next one while the caller works with this one."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = None
        for item in items:
            current, upcoming = upcoming, pool.submit(fetch, item)
            if current is not None:
                yield current.result()
        if upcoming is not None:
            yield upcoming.result()


def stack_members(members: Iterable[Any]) -> Any:
    """Stacks trees of host arrays, one tree a member, along a new first axis M."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *members)


def collate(pairs: Sequence[Pair], rows: int, shape: BatchShape, positions: LossPositions, eos: int) -> Batch:
    """Packs pairs into `rows` rows of `shape`; the rest of a row is padding of weight 0.

    Args:
      eos: the token that is learnt at the end of a response.
    """
    dealt = deal(pairs, rows)
    targets = [[pair_targets(pair, positions, eos) for pair in row] for row in dealt]
    return Batch(
        _pack_side("teacher", dealt, shape, positions),
        _pack_side("student", dealt, shape, positions),
        _join_rows([[pair.labels for pair in row] for row in targets], shape.predictions, 0),
        _join_rows([[pair.weights for pair in row] for row in targets], shape.predictions, 0, np.float32),
        _join_rows([[pair.hidden_weights for pair in row] for row in targets], shape.aligned, 0, np.float32),
    )


def _pack_side(side: str, dealt: Sequence[Sequence[Pair]], shape: BatchShape, positions: LossPositions) -> Side:
    """Packs one side of the pairs of each row."""
    size = getattr(shape, side)
    columns: dict[str, list[list[Sequence[int]]]] = {name: [] for name in Side._fields if name != "unpack_BEU"}
    unpack_BEU = np.full((len(dealt), shape.sequences, size.longest), -1, np.int32)
    pair_numbers = itertools.count()
    for row, pairs in enumerate(dealt):
        start = 0  # of the sequence in its row
        for values in columns.values():
            values.append([])
        for sequence, pair in enumerate(pairs):
            prompt = getattr(pair.prompts, f"{side}_ids")[size.prefix :]
            ids = prompt + pair.response_ids
            first = next(pair_numbers) * MOST_TOKENS + size.prefix
            unpack_BEU[row, sequence, : len(ids)] = range(start, start + len(ids))
            packed = {
                "tokens_BT": ids,
                "positions_BT": range(size.prefix, size.prefix + len(ids)),
                "dropout_ids_BT": range(first, first + len(ids)),
                "pack_BT": range(sequence * size.longest, sequence * size.longest + len(ids)),
                "predict_BP": [start + at for at in prediction_positions(pair, len(prompt), positions)],
                "aligned_BQ": [start + at for at in aligned_positions(pair, len(prompt), positions)],
            }
            for name, values in packed.items():
                columns[name][-1].append(values)
            start += len(ids)
    widths = {"predict_BP": shape.predictions, "aligned_BQ": shape.aligned}
    paddings = {"pack_BT": -1}
    arrays = {
        name: _join_rows(values, widths.get(name, size.tokens), paddings.get(name, 0))
        for name, values in columns.items()
    }
    return Side(unpack_BEU=unpack_BEU, **arrays)


def _join_rows(rows: Sequence[Sequence[Sequence[Any]]], width: int, padding: Any, dtype: Any = np.int32) -> np.ndarray:
    """Joins the lists of the pairs of each row and pads them to [rows, width]."""
    array = np.full((len(rows), width), padding, dtype)
    for row, lists in enumerate(rows):
        joined = [*itertools.chain(*lists)]
        array[row, : len(joined)] = joined
    return array


def indices_in_rows(numbers: Sequence[int], offsets: np.ndarray, rows: int, width: int) -> np.ndarray:
    """Finds the positions of some pairs, numbered through all pairs, where a batch of these pairs has them.

    Args:
      numbers: of the batch's pairs.
      offsets: of all pairs' positions (`position_offsets`).

    Returns:
      int [rows, width]; 0 where the batch has padding.
    """
    dealt = [[range(offsets[number], offsets[number + 1]) for number in row] for row in deal(numbers, rows)]
    return _join_rows(dealt, width, 0)


def with_shares(batch: Batch, shares_M2: np.ndarray) -> Batch:
    """Scales the weights of micro-batches [M, A, B, ...]: of predictions, and of aligned positions, by [M, 2]."""
    predictions_M, aligned_M = shares_M2.astype(np.float32).T
    return batch._replace(
        weight_BP=batch.weight_BP * predictions_M[:, None, None, None],
        hidden_weight_BQ=batch.hidden_weight_BQ * aligned_M[:, None, None, None],
    )


def as_update(batch: Batch, accumulation: int, weight: float = 1.0) -> Batch:
    """Reshapes a batch of A * B rows to micro-batches [A, B, ...] and normalises its loss weights.

    Args:
      weight: what the weights sum to over all micro-batches.
    """
    batch = batch._replace(
        weight_BP=batch.weight_BP * np.float32(weight) / batch.weight_BP.sum(),
        hidden_weight_BQ=batch.hidden_weight_BQ * np.float32(weight) / batch.hidden_weight_BQ.sum(),
    )
    return jax.tree.map(lambda leaf: leaf.reshape(accumulation, -1, *leaf.shape[1:]), batch)


def epoch_order(count: int, seed: int, epoch: int, *more: int) -> list[int]:
    """Shuffles the numbers of an epoch's samples; the order follows from the arguments alone."""
    order = list(range(count))
    random.Random("-".join(map(str, ("order", seed, epoch, *more)))).shuffle(order)
    return order


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Counts the updates of an epoch; the last one may be smaller."""
    return -(-count // batch_size)
