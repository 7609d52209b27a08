"""Where a stage's teacher signals come from: made once for all epochs, or anew for every batch.

The teacher is frozen, so what it shows for a pair never changes. Kept are the inputs of all blocks at the aligned
positions and the final state at the prediction positions; logits are recomputed from the latter through the shared
head, so the KL divergence stays exact over the whole vocabulary.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rdjax.data.batches import Batch
from rdjax.distill.step import teacher_signals
from rdjax.distill.teacher import Signals
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter

SignalSource = Callable[[np.ndarray, Batch], Signals]
MakeBatch = Callable[[Sequence[Sequence[int]]], Batch]


def online_signals(model: LanguageModel, teachers_M: Adapter, scale: float) -> SignalSource:
    """Asks the teachers anew for every batch."""

    def signals(rows_MAB: np.ndarray, batch: Batch) -> Signals:
        del rows_MAB
        return teacher_signals(model.graph, model.base, teachers_M, batch, scale)

    return signals


def cached_signals(
    model: LanguageModel,
    teachers_M: Adapter,
    scale: float,
    members: int,
    count: int,
    batch_size: int,
    make_batch: MakeBatch,
) -> SignalSource:
    """Asks the teachers once for every pair and keeps what they show in device memory.

    Args:
      members, count: how many members, and how many pairs each has.
      make_batch: (numbers of pairs of each member) -> their batch [M, A, B, ...].
    """
    parts = []
    for start in range(0, count, batch_size):
        numbers = list(range(start, min(start + batch_size, count)))
        batch = make_batch([numbers] * members)
        parts.append(_by_example(teacher_signals(model.graph, model.base, teachers_M, batch, scale), len(numbers)))
    kept = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *parts)

    def signals(rows_MAB: np.ndarray, batch: Batch) -> Signals:
        del batch
        return _select(kept, rows_MAB)

    return signals


def _by_example(signals: Signals, count: int) -> Signals:
    """Signals [M, A, L, B, Q, D] and [M, A, B, P, D] as [M, E, L, Q, D] and [M, E, P, D] of the first `count` rows."""
    inputs = jnp.moveaxis(signals.inputs_LBQD, 2, 3)
    inputs, final = (leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:]) for leaf in (inputs, signals.final_BPD))
    return Signals(inputs[:, :count], final[:, :count])


@jax.jit
def _select(kept: Signals, rows_MAB: jax.Array) -> Signals:
    """The kept signals of some examples, laid out as a batch's."""

    def one(kept: Signals, rows_AB: jax.Array) -> Signals:
        return Signals(jnp.moveaxis(kept.inputs_LBQD[rows_AB], 2, 1), kept.final_BPD[rows_AB])

    return jax.vmap(one)(kept, rows_MAB)
