"""Batches: pairs as padded arrays, with loss weights that already hold the reduction."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rdjax.data.pairs import Pair

# A shared prefix of fewer tokens is read in every row: reading it once would save little.
PREFIX_PAYS = 16


class Side(NamedTuple):
    """One of the two sequences of each pair.

    Attributes:
      tokens_BT: prompt and response, padded on the right; less the prefix where all rows share one.
      lengths_B: real tokens of each row.
      predict_BP: where the logits of the response are read, as places in `tokens_BT`.
      aligned_BQ: where hidden states are compared, likewise.
    """

    tokens_BT: np.ndarray
    lengths_B: np.ndarray
    predict_BP: np.ndarray
    aligned_BQ: np.ndarray


class Batch(NamedTuple):
    """Aligned pairs.

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


class Shape(NamedTuple):
    """Padded sizes, the same for all batches of a stage, so that one program serves them.

    Attributes:
      prefix: leading tokens of the teacher's prompts that all share and the batch leaves out (`shared_prefix`).
    """

    teacher: int
    student: int
    predict: int
    aligned: int
    prefix: int = 0


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


def teacher_prefix(pairs: Sequence[Pair], slots: Slots) -> int:
    """`shared_prefix` of the teacher's prompts, less what the losses read."""
    ends = [_aligned(pair, len(pair.prompts.teacher_ids), slots)[0] for pair in pairs]
    return shared_prefix([pair.prompts.teacher_ids[: end + 1] for pair, end in zip(pairs, ends, strict=True)])


def batch_shape(pairs: Sequence[Pair], slots: Slots, prefix: int = 0) -> Shape:
    """The smallest shape, in steps of 8 tokens, that holds every pair less the teacher's prefix."""

    def longest(sizes: Iterator[int]) -> int:
        return round_up(max(sizes), 8)

    return Shape(
        longest(len(pair.prompts.teacher_ids) + len(pair.response_ids) - prefix for pair in pairs),
        longest(len(pair.prompts.student_ids) + len(pair.response_ids) for pair in pairs),
        longest(len(_predict(pair, len(pair.prompts.student_ids), slots)) for pair in pairs),
        longest(len(_aligned(pair, len(pair.prompts.student_ids), slots)) for pair in pairs),
        prefix,
    )


def collate(pairs: Sequence[Pair], rows: int, shape: Shape, slots: Slots, eos: int) -> Batch:
    """Pads pairs to `rows` rows of `shape`; missing rows are padding of weight 0."""
    size = {"T": shape.teacher, "S": shape.student, "P": shape.predict, "Q": shape.aligned}

    def zeros(axis: str, dtype=np.int32) -> np.ndarray:
        return np.zeros((rows, size[axis]), dtype)

    teacher = Side(zeros("T"), np.ones(rows, np.int32), zeros("P"), zeros("Q"))
    student = Side(zeros("S"), np.ones(rows, np.int32), zeros("P"), zeros("Q"))
    batch = Batch(teacher, student, zeros("P"), zeros("P", np.float32), zeros("Q", np.float32))
    for row, pair in enumerate(pairs):
        for side, whole, left_out in (
            (teacher, pair.prompts.teacher_ids, shape.prefix),
            (student, pair.prompts.student_ids, 0),
        ):
            # Less the prefix, the places of what remains are the shorter prompt's.
            prompt = whole[left_out:]
            ids = prompt + pair.response_ids
            predict, aligned = _predict(pair, len(prompt), slots), _aligned(pair, len(prompt), slots)
            side.tokens_BT[row, : len(ids)] = ids
            side.lengths_B[row] = len(ids)
            side.predict_BP[row, : len(predict)] = predict
            side.aligned_BQ[row, : len(aligned)] = aligned
        ended = (*pair.response_ids, eos)
        batch.labels_BP[row, : len(predict)] = ended[1:] if slots.variant == "published" else ended[: len(predict)]
        batch.weight_BP[row, : len(predict)] = 1 / len(predict) if slots.reduction == "sample" else 1
        batch.hidden_weight_BQ[row, : len(aligned)] = 1 / len(aligned) if slots.reduction == "sample" else 1
    return batch


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
