"""Updates: the pairs of a stage's members as batches on the mesh, with the teachers' signals."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import config_dict

from rdjax.data.batches import Batch, as_update, collate, stack_members
from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions, slot_begins
from rdjax.data.prefix import Prefixes, pair_prefixes
from rdjax.data.shapes import Shape, batch_shape, few_sizes, in_batches
from rdjax.distill.signals import (
    Numbers,
    SignalSource,
    abstract_signals,
    cached_signals,
    choose_place,
    make_signal_function,
    online_signals,
    signal_bytes,
    signals_fingerprint,
)
from rdjax.distill.step import Objective
from rdjax.distill.teacher import Signals
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import abstract_like, place_prefix, put, row_multiple, rows_sharding


class Fetched(NamedTuple):
    """An update in host memory.

    Attributes:
      batch: micro-batches [M, A, B, ...].
      held: what the signals' source fetched; None when tuning on the response.
      weights: each member's slot weight before it was made 1.
    """

    batch: Batch
    held: Any
    weights: list[float]


def in_turn(count: int, batch_size: int, members: int) -> list[Numbers]:
    """All of `count` pairs in order, the same for every member."""
    return [[numbers] * members for numbers in in_batches(list(range(count)), batch_size)]


@dataclasses.dataclass(frozen=True)
class Updates:
    """Makes updates out of the members' training or validation pairs, with the teachers' signals.

    Attributes:
      pairs: of each member, as many.
      slots: which positions enter the losses.
      prefixes: what both sides leave out.
      rows, accumulation: rows of a micro-batch and micro-batches of an update, to suit the mesh.
      model: on whose mesh the batches lie.
      trained: "teacher" or "student": the side that is trained.
      distils: whether it is trained on the teachers' signals, or on the response.
      shapes: padded sizes, from the smallest; an update takes the first that holds it.
      examples: an update of each shape.
      source: of the teachers' signals, once there are some.
    """

    pairs: Sequence[Sequence[Pair]]
    slots: LossPositions
    prefixes: Prefixes
    rows: int
    accumulation: int
    model: LanguageModel
    trained: str
    distils: bool
    shapes: Sequence[Shape] = ()
    examples: Sequence[Numbers] = ()
    source: SignalSource | None = None

    @classmethod
    def make(
        cls,
        pairs: Sequence[Sequence[Pair]],
        updates: Sequence[Numbers],
        slots: LossPositions,
        objective: Objective,
        model: LanguageModel,
        train: config_dict.ConfigDict,
    ) -> "Updates":
        """Without signals.

        Args:
          updates: all that will be taken; the shapes follow from them.
        """
        rows = row_multiple(model.mesh)
        trained = "teacher" if objective.kind == "tune_with_rule" else "student"
        prefixes = pair_prefixes([pair for own in pairs for pair in own], slots)
        # A mesh whose rows hold the whole batch has nothing to accumulate.
        accumulation = min(train.accumulation, -(-train.batch_size // rows))
        distils = objective.kind == "distill"
        return cls(pairs, slots, prefixes, rows, accumulation, model, trained, distils).shaped(updates)

    def with_signals(
        self, teachers_M: Adapter, scale: float, train: config_dict.ConfigDict, folder: pathlib.Path
    ) -> "Updates":
        """The same with the teachers' signals, where it distils: of all pairs made here, unless `train` says online.

        Args:
          scale: of the teachers' adapters.
          folder: of signals that are kept on disk.
        """
        if not self.distils:
            return self
        pairs, slots, model = self.pairs, self.slots, self.model
        ask = make_signal_function(model, teachers_M, scale, self.prefix_C("teacher"))
        if train.teacher_signals == "online":
            return dataclasses.replace(self, source=online_signals(ask, model.mesh))
        begins_M = [slot_begins(own, slots) for own in pairs]
        size = signal_bytes(model, begins_M)
        place = choose_place(size, model.mesh) if train.teacher_signals == "cached" else train.teacher_signals
        print(f"teacher signals of {len(pairs[0])} pairs: {size / 2**20:.1f} MiB, kept on the {place}")
        if place == "disk":
            texts = [[[p.prompts.teacher_ids, p.response_ids, p.ended, p.prompts.shared] for p in own] for own in pairs]
            folder = folder / signals_fingerprint(model, teachers_M, scale, [texts, slots])[:16]
            folder = folder / f"process-{jax.process_index()}"
        in_order = in_turn(len(pairs[0]), train.batch_size, len(pairs))
        once = self.shaped(in_order)
        source = cached_signals(model, ask, begins_M, map(once.batch, in_order), place, folder)
        return dataclasses.replace(self, source=source)

    def prefix_C(self, side: str) -> jax.Array | None:
        """The tokens that one side of all pairs leaves out, or None."""
        prompt = getattr(self.pairs[0][0].prompts, f"{side}_ids")
        return place_prefix(prompt, getattr(self.prefixes, side), self.model.mesh)

    @functools.cached_property
    def trained_prefix_C(self) -> jax.Array | None:
        """What the trained side leaves out."""
        return self.prefix_C(self.trained)

    def describe(self) -> str:
        """What an update's rows hold."""
        sizes = ", ".join(str(getattr(shape, self.trained).tokens) for shape in self.shapes)
        left = getattr(self.prefixes, self.trained)
        return f"{len(self.pairs[0])} pairs in rows of {sizes} tokens, less {left} that all begin with"

    def shaped(self, updates: Sequence[Numbers]) -> "Updates":
        """The same with the few shapes that these updates need."""
        own = [self._smallest(self._chosen(numbers)) for numbers in updates]
        sizes = [getattr(shape, self.trained).tokens for shape in own]
        limits = few_sizes(sizes)
        groups: dict[int, list[int]] = {limit: [] for limit in limits}
        for number, size in enumerate(sizes):
            groups[next(limit for limit in limits if size <= limit)].append(number)
        shapes = [
            jax.tree.map(lambda *sizes: max(sizes), *(own[number] for number in group)) for group in groups.values()
        ]
        examples = [updates[group[0]] for group in groups.values()]
        return dataclasses.replace(self, shapes=shapes, examples=examples)

    def _chosen(self, numbers: Numbers) -> list[list[Pair]]:
        return [[own[number] for number in chosen] for own, chosen in zip(self.pairs, numbers, strict=True)]

    def _smallest(self, chosen: Sequence[Sequence[Pair]]) -> Shape:
        return batch_shape(chosen, self.rows * self.accumulation, self.slots, self.prefixes)

    def _collate(self, numbers: Numbers) -> list[Batch]:
        chosen = self._chosen(numbers)
        own = self._smallest(chosen)
        shape = next(shape for shape in self.shapes if all(jax.tree.leaves(jax.tree.map(int.__le__, own, shape))))
        eos = self.model.eos_ids[0]
        return [collate(pairs, self.rows * self.accumulation, shape, self.slots, eos) for pairs in chosen]

    def _together(self, made: Sequence[Batch]) -> Batch:
        return stack_members(as_update(batch, self.accumulation) for batch in made)

    def fetch(self, numbers: Numbers) -> Fetched:
        """The numbered pairs of each member as an update, and what there is of their signals; numpy alone."""
        made = self._collate(numbers)
        batch = self._together(made)
        held = None if self.source is None else self.source.fetch(numbers, batch)
        return Fetched(batch, held, [float(member.weight_BP.sum()) for member in made])

    def abstract_updates(self) -> list[tuple[Batch, Signals | None]]:
        """The shapes of what `place` gives, for each padded size: programs can be compiled before there are signals."""
        rows = rows_sharding(self.model.mesh, leading=2)
        batches = [abstract_like(self._together(self._collate(numbers)), rows) for numbers in self.examples]
        return [(batch, abstract_signals(self.model, batch) if self.distils else None) for batch in batches]

    def place(self, fetched: Fetched) -> tuple[Batch, Signals | None]:
        """What was fetched, on the mesh: the batch and the teachers' signals, where there are some."""
        batch = put(fetched.batch, rows_sharding(self.model.mesh, leading=2))
        return batch, None if self.source is None else self.source.show(fetched.held, batch)

    def batch(self, numbers: Numbers) -> Batch:
        """The numbered pairs of each member as an update's micro-batches [M, A, B, ...] on the mesh."""
        return dataclasses.replace(self, source=None).place(self.fetch(numbers))[0]
