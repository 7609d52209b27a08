"""Updates: the pairs of a stage's members as batches on the mesh, with the teachers' signals."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import config_dict

from rdjax.data.batches import Batch, Shape, Slots, as_update, batch_shape, collate, round_up
from rdjax.data.pairs import Pair
from rdjax.distill.signals import SignalSource, cached_signals, online_signals
from rdjax.distill.step import Objective
from rdjax.distill.teacher import Signals
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.sharding import row_multiple, rows_sharding


@dataclasses.dataclass(frozen=True)
class Updates:
    """Makes updates of one shape out of the members' training or validation pairs, with the teachers' signals.

    Attributes:
      pairs: of each member, as many.
      shape, slots: padded sizes, the same for all updates, and which positions enter the losses.
      rows, accumulation: rows of a micro-batch and micro-batches of an update, to suit the mesh.
      batch_size: pairs an update.
      source: of the teacher's signals; None when tuning on the response.
    """

    pairs: Sequence[Sequence[Pair]]
    shape: Shape
    slots: Slots
    rows: int
    accumulation: int
    batch_size: int
    model: LanguageModel
    source: SignalSource | None = None

    @classmethod
    def make(
        cls,
        pairs: Sequence[Sequence[Pair]],
        slots: Slots,
        objective: Objective,
        model: LanguageModel,
        teachers_M: Adapter,
        scale: float,
        train: config_dict.ConfigDict,
    ) -> "Updates":
        """Where the objective distils, the signals of all pairs are made here, unless `train` says online."""
        shape = batch_shape([pair for own in pairs for pair in own], slots)
        rows = round_up(train.batch_size // train.accumulation, row_multiple(model.mesh))
        # A mesh that wants more rows in a micro-batch needs fewer of them.
        updates = cls(pairs, shape, slots, rows, -(-train.batch_size // rows), train.batch_size, model)
        if objective.kind != "distill":
            return updates
        if train.teacher_signals == "online":
            return dataclasses.replace(updates, source=online_signals(model, teachers_M, scale))
        source = cached_signals(model, teachers_M, scale, len(pairs), len(pairs[0]), train.batch_size, updates.batch)
        return dataclasses.replace(updates, source=source)

    def _collate(self, numbers: Sequence[Sequence[int]]) -> list[Batch]:
        eos = self.model.tokenizer.eos_token_id
        return [
            collate([own[number] for number in chosen], self.rows * self.accumulation, self.shape, self.slots, eos)
            for own, chosen in zip(self.pairs, numbers, strict=True)
        ]

    def _place(self, made: Sequence[Batch]) -> Batch:
        updates = [as_update(batch, self.accumulation) for batch in made]
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *updates)
        return jax.device_put(batch, rows_sharding(self.model.mesh, leading=2))

    def batch(self, numbers: Sequence[Sequence[int]]) -> Batch:
        """The numbered pairs of each member as an update's micro-batches [M, A, B, ...] on the mesh."""
        return self._place(self._collate(numbers))

    def take(self, numbers: Sequence[Sequence[int]]) -> tuple[Batch, Signals | None, list[float]]:
        """`batch`, the teacher's signals for it, and each member's slot weight before it was made 1.

        Rows that are missing are padding.
        """
        made = self._collate(numbers)
        batch = self._place(made)
        weights = [float(member.weight_BP.sum()) for member in made]
        if self.source is None:
            return batch, None, weights
        rows = np.zeros((len(numbers), self.rows * self.accumulation), np.int32)  # padding shows the first pair's
        for member, chosen in enumerate(numbers):
            rows[member, : len(chosen)] = chosen
        return batch, self.source(rows.reshape(len(numbers), self.accumulation, -1), batch), weights
