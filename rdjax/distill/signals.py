"""Where a stage's teacher signals come from: made once for all epochs, or anew for every batch.

The teacher is frozen, so what it shows for a pair never changes. Kept are the inputs of all blocks at the aligned
positions and the final state at the prediction positions; logits are recomputed from the latter through the shared
head, so the KL divergence stays exact over the whole vocabulary.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from rdjax.data.batches import Batch
from rdjax.distill.step import teacher_signals
from rdjax.distill.teacher import Signals
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.sharding import rows_sharding

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
    """Asks the teachers once for every pair and keeps what they show in host memory.

    Args:
      members, count: how many members, and how many pairs each has.
      make_batch: (numbers of pairs of each member) -> their batch [M, A, B, ...].
    """
    parts = []
    for start in range(0, count, batch_size):
        numbers = list(range(start, min(start + batch_size, count)))
        batch = make_batch([numbers] * members)
        shown = jax.device_get(teacher_signals(model.graph, model.base, teachers_M, batch, scale))
        parts.append(_by_example(shown, len(numbers)))
    kept_M = [
        Signals(*(np.concatenate(leaves) for leaves in zip(*own, strict=True))) for own in zip(*parts, strict=True)
    ]
    # Laid out as the batch's rows: [M, A, L, B, Q, D] and [M, A, B, P, D].
    shardings = Signals(rows_sharding(model.mesh, leading=3), rows_sharding(model.mesh, leading=2))

    def signals(rows_MAB: np.ndarray, batch: Batch) -> Signals:
        del batch
        chosen = [
            Signals(np.moveaxis(kept.inputs_LBQD[rows_AB], 2, 1), kept.final_BPD[rows_AB])
            for kept, rows_AB in zip(kept_M, rows_MAB, strict=True)
        ]
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *chosen), shardings)

    return signals


def _by_example(signals: Signals, count: int) -> list[Signals]:
    """Signals [M, A, L, B, Q, D] and [M, A, B, P, D] as each member's [E, L, Q, D] and [E, P, D], E = `count`."""
    inputs, final = np.moveaxis(signals.inputs_LBQD, 2, 3), signals.final_BPD
    inputs, final = (leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:])[:, :count] for leaf in (inputs, final))
    return [Signals(*own) for own in zip(inputs, final, strict=True)]
