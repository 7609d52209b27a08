"""Chooses which positions of a pair enter the losses, and with which labels and weights."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rdjax.data.pairs import Pair


class LossPositions(NamedTuple):
    """Says which positions of a pair enter the losses.

    Attributes:
      variant: "ours", or "published": as in the authors' code, logits are not shifted and no end of sequence is
        predicted.
      hidden_positions: where hidden states are compared: "response", or "shared": the whole tail that the two prompts
        share, and the response.
      reduction: "token": every position weighs the same; "sample": every pair does.
    """

    variant: str
    hidden_positions: str
    reduction: str


class PairTargets(NamedTuple):
    """Holds what a pair's positions are compared with and how much each weighs.

    Attributes:
      labels: the token that each prediction position predicts.
      weights: of the prediction positions.
      hidden_weights: of the positions at which hidden states are compared.
    """

    labels: list[int]
    weights: list[float]
    hidden_weights: list[float]


def prediction_positions(pair: Pair, prompt_length: int, positions: LossPositions) -> range:
    """Returns the positions whose logits predict the response and its end: from the last prompt token on.

    The published variant begins one position later, at the response's first token.
    """
    if positions.variant == "published":
        return range(prompt_length, prompt_length + len(pair.response_ids))
    return range(prompt_length - 1, prompt_length + len(pair.response_ids) - (not pair.ended))


def aligned_positions(pair: Pair, prompt_length: int, positions: LossPositions) -> range:
    """Returns the positions at which hidden states are compared."""
    predictions = prediction_positions(pair, prompt_length, positions)
    if positions.hidden_positions == "response":
        return predictions
    return range(min(prompt_length - pair.prompts.shared, predictions[0]), predictions[-1] + 1)


def count_positions(pair: Pair, positions: LossPositions) -> tuple[int, int]:
    """Counts a pair's prediction positions and its aligned positions; teacher and student have as many."""
    prompt_length = len(pair.prompts.student_ids)
    return (
        len(prediction_positions(pair, prompt_length, positions)),
        len(aligned_positions(pair, prompt_length, positions)),
    )


def pair_targets(pair: Pair, positions: LossPositions, eos: int) -> PairTargets:
    """Returns labels and weights of a pair, before the weights are normalised over a batch."""
    predictions, aligned = count_positions(pair, positions)
    response = [*pair.response_ids, eos]
    labels = response[1:] if positions.variant == "published" else response[:predictions]
    by_sample = positions.reduction == "sample"
    return PairTargets(
        labels,
        [1 / predictions if by_sample else 1.0] * predictions,
        [1 / aligned if by_sample else 1.0] * aligned,
    )


class Offsets(NamedTuple):
    """Says where each pair's positions begin when those of all pairs are numbered through.

    The last entry is their count.

    Attributes:
      predictions, aligned: int [pairs + 1].
    """

    predictions: np.ndarray
    aligned: np.ndarray


def position_offsets(pairs: Sequence[Pair], positions: LossPositions) -> Offsets:
    """Numbers the positions of all pairs through, in the order of the pairs."""
    counts = np.array([count_positions(pair, positions) for pair in pairs])
    return Offsets(*np.concatenate([np.zeros((1, 2), counts.dtype), counts.cumsum(axis=0)]).T)
