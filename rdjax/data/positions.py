"""Chooses which positions of a pair enter the losses, and with which labels and weights."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rdjax.data.pairs import Pair


class LossPositions(NamedTuple):
    """Which positions of a pair enter the losses."""

    variant: str  # "ours" or "published" (METHOD: unshifted positions, no end token)
    hidden_positions: str  # "response" or "shared"
    reduction: str  # "token" or "sample"


def predict_positions(pair: Pair, prompt: int, slots: LossPositions) -> list[int]:
    """Positions whose logits predict the response: from the last prompt token on, shifted by one for `published`."""
    if slots.variant == "published":
        return list(range(prompt, prompt + len(pair.response_ids)))
    return list(range(prompt - 1, prompt + len(pair.response_ids) - (not pair.ended)))


def aligned_positions(pair: Pair, prompt: int, slots: LossPositions) -> list[int]:
    predict = predict_positions(pair, prompt, slots)
    if slots.hidden_positions == "response":
        return predict
    return list(range(min(prompt - pair.prompts.shared, predict[0]), predict[-1] + 1))


class Begins(NamedTuple):
    """At which of all slots those of each pair begin, and at last how many there are."""

    aligned: np.ndarray
    predict: np.ndarray


def slot_begins(pairs: Sequence[Pair], slots: LossPositions) -> Begins:
    """Where each pair's slots begin when those of all pairs stand one behind the other."""
    held = [slot_lists(pair, slots, eos=0) for pair in pairs]
    aligned, predict = [len(lists.hidden_weights) for lists in held], [len(lists.weights) for lists in held]
    return Begins(np.cumsum([0, *aligned]), np.cumsum([0, *predict]))


class SlotLists(NamedTuple):
    """What the slots of a pair hold."""

    labels: list[int]
    weights: list[float]
    hidden_weights: list[float]


def slot_lists(pair: Pair, slots: LossPositions, eos: int) -> SlotLists:
    """Labels and weights of a pair's predictions, and the weights of its aligned positions."""
    prompt = len(pair.prompts.student_ids)
    predict, aligned = len(predict_positions(pair, prompt, slots)), len(aligned_positions(pair, prompt, slots))
    ended = [*pair.response_ids, eos]
    labels = ended[1:] if slots.variant == "published" else ended[:predict]
    by_sample = slots.reduction == "sample"
    return SlotLists(
        labels, [1 / predict if by_sample else 1.0] * predict, [1 / aligned if by_sample else 1.0] * aligned
    )
