"""Loads updates: chosen pairs of every group as batches on the mesh, with the teachers' signals."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from rdjax.data.batches import Batch, as_update, collate, epoch_order, fetch_ahead, stack_members, steps_per_epoch
from rdjax.data.groups import PairGroup, numbers_by_rule
from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions, count_positions, pair_targets, position_offsets
from rdjax.data.prefix import SharedPrefix, equal_lengths, shared_prefix
from rdjax.data.shapes import BatchShape, batch_shape, choose_shapes, fits, in_batches
from rdjax.distillation.forward import Signals
from rdjax.distillation.objective import Objective
from rdjax.distillation.signals import (
    PairNumbers,
    SignalSource,
    abstract_signals,
    cached_signals,
    choose_store,
    online_signals,
    signal_bytes,
    signals_fingerprint,
)
from rdjax.distillation.step import GroupUpdate, Update
from rdjax.distillation.teacher import make_teacher
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import abstract_like, put, replicated, row_multiple, rows_sharding

UpdateNumbers = Sequence[PairNumbers]  # for each group the numbers of each member's pairs


class Fetched(NamedTuple):
    """Holds one group's share of an update in host memory: the batch, and what is cached there of its signals."""

    batch: Batch
    signals: Any


@dataclasses.dataclass(frozen=True)
class GroupLoader:
    """Loads one group's share of the updates.

    Attributes:
      pairs_M: each member's pairs of the group, as many for each.
      prefixes_M: each member's shared prefix, of the same lengths for all.
      weight: of the group in the loss.
      positions: which positions enter the loss.
      objective: says which side is trained and whether there are signals.
      model: its mesh holds the batches.
      rows, accumulation: rows of a micro-batch, and micro-batches of an update.
      shapes: padded sizes; an update takes the first that it fits into.
      source: of the teachers' signals, once it is known.
    """

    pairs_M: Sequence[Sequence[Pair]]
    prefixes_M: Sequence[SharedPrefix]
    weight: float
    positions: LossPositions
    objective: Objective
    model: LanguageModel
    rows: int
    accumulation: int
    shapes: Sequence[BatchShape] = ()
    source: SignalSource | None = None

    def prefix_length(self, side: str) -> int:
        """Counts the tokens of the shared prefix of one side."""
        return len(getattr(self.prefixes_M[0], side))

    def prefix_tokens(self, side: str) -> np.ndarray | None:
        """Returns each member's shared prefix of one side, int [M, C]; None where there is none."""
        tokens = np.array([getattr(prefix, side) for prefix in self.prefixes_M], np.int32)
        return tokens if tokens.size else None

    def prefix_MC(self, side: str) -> jax.Array | None:
        """Returns `prefix_tokens` on the mesh."""
        tokens = self.prefix_tokens(side)
        return None if tokens is None else put(tokens, replicated(self.model.mesh))

    @functools.cached_property
    def trained_prefix_MC(self) -> jax.Array | None:
        """Returns the shared prefix of the side that is trained, on the mesh."""
        return self.prefix_MC(self.objective.trained)

    def chosen_pairs(self, numbers: PairNumbers) -> list[list[Pair]]:
        """Returns each member's pairs of these numbers."""
        return [[pairs[number] for number in chosen] for pairs, chosen in zip(self.pairs_M, numbers, strict=True)]

    def smallest_shape(self, numbers: PairNumbers) -> BatchShape:
        """Returns the smallest shape that holds the numbered pairs of every member."""
        chosen = self.chosen_pairs(numbers)
        return batch_shape(chosen, self.rows * self.accumulation, self.positions, self.prefixes_M[0])

    def shape_of(self, numbers: PairNumbers) -> BatchShape:
        """Returns the shape that an update of the numbered pairs is padded to."""
        smallest = self.smallest_shape(numbers)
        return next(shape for shape in self.shapes if fits(smallest, shape))

    def padded_to_few_shapes(self, batches: Sequence[PairNumbers]) -> "GroupLoader":
        """Returns the same loader with the few shapes that these batches need."""
        shapes = choose_shapes([self.smallest_shape(numbers) for numbers in batches], self.objective.trained)
        return dataclasses.replace(self, shapes=shapes)

    def host_batch(self, numbers: PairNumbers) -> Batch:
        """Makes micro-batches [M, A, B, ...] of the numbered pairs in host memory."""
        shape, rows = self.shape_of(numbers), self.rows * self.accumulation
        eos = self.model.eos_ids[0]
        batches = (collate(pairs, rows, shape, self.positions, eos) for pairs in self.chosen_pairs(numbers))
        return stack_members(as_update(batch, self.accumulation, self.weight) for batch in batches)

    def mesh_batch(self, numbers: PairNumbers) -> Batch:
        """Makes micro-batches [M, A, B, ...] of the numbered pairs on the mesh."""
        return put(self.host_batch(numbers), rows_sharding(self.model.mesh, leading=2))

    def fetch(self, numbers: PairNumbers) -> Fetched:
        """Prepares the numbered pairs in host memory, with numpy alone."""
        batch = self.host_batch(numbers)
        return Fetched(batch, None if self.source is None else self.source.fetch(numbers, batch))

    def put(self, fetched: Fetched) -> GroupUpdate:
        """Puts what was fetched on the mesh."""
        batch = put(fetched.batch, rows_sharding(self.model.mesh, leading=2))
        signals = None if self.source is None else self.source.put(fetched.signals, batch)
        return GroupUpdate(batch, signals, self.trained_prefix_MC)

    def abstract(self, numbers: PairNumbers) -> GroupUpdate:
        """Returns the shapes and shardings of what `put` returns, before there are signals."""
        batch = abstract_like(self.host_batch(numbers), rows_sharding(self.model.mesh, leading=2))
        signals = abstract_signals(self.model, batch) if self.objective.has_teacher else None
        tokens = self.prefix_tokens(self.objective.trained)
        prefix_MC = None if tokens is None else abstract_like(tokens, replicated(self.model.mesh))
        return GroupUpdate(batch, signals, prefix_MC)

    def total_weights(self, numbers: PairNumbers) -> np.ndarray:
        """Sums each member's weights before they are normalised, [M, 2]: of predictions, and of aligned positions."""
        targets_M = [[pair_targets(pair, self.positions, eos=0) for pair in own] for own in self.chosen_pairs(numbers)]
        return np.array(
            [
                [sum(sum(target.weights) for target in own), sum(sum(target.hidden_weights) for target in own)]
                for own in targets_M
            ]
        )

    def describe(self) -> str:
        """Says how many pairs the group has and how long the rows of its updates are."""
        sizes = ", ".join(str(getattr(shape, self.objective.trained).tokens) for shape in self.shapes)
        prefix = self.prefix_length(self.objective.trained)
        return f"{len(self.pairs_M[0])} pairs in rows of {sizes} tokens behind a shared prefix of {prefix}"


def make_loader(
    groups_M: Sequence[PairGroup],
    batches: Sequence[PairNumbers],
    positions: LossPositions,
    objective: Objective,
    model: LanguageModel,
    train: config_dict.ConfigDict,
) -> GroupLoader:
    """Makes the loader of one group, without signals.

    Args:
      groups_M: each member's pairs of the group.
      batches: all that will be loaded; the padded sizes follow from them.
      train: the config's section.
    """
    rows = row_multiple(model.mesh)
    # A mesh whose rows hold the whole batch has nothing to accumulate.
    accumulation = min(train.accumulation, -(-groups_M[0].batch_size(train.batch_size) // rows))
    pairs_M = [group.pairs for group in groups_M]
    prefixes_M = equal_lengths([group.prefix for group in groups_M])
    loader = GroupLoader(pairs_M, prefixes_M, groups_M[0].weight, positions, objective, model, rows, accumulation)
    return loader.padded_to_few_shapes(batches)


def with_signals(
    loader: GroupLoader,
    teachers_M: Adapter,
    scale: float,
    train: config_dict.ConfigDict,
    folder: pathlib.Path,
    known: dict[str, SignalSource],
) -> GroupLoader:
    """Returns the loader with the teachers' signals of all its pairs, where the objective has a teacher.

    Args:
      teachers_M: the teachers' adapters, with `scale`.
      train: the config's section; says where signals are cached, or that they are computed in every step.
      folder: of caches on disk.
      known: cached signals by their fingerprints. Those of another group whose teachers read the same are taken from
        there, and new ones are added.
    """
    if not loader.objective.has_teacher:
        return loader
    model, positions = loader.model, loader.positions
    if train.teacher_signals == "online":
        compute_signals = make_teacher(model, teachers_M, scale, loader.prefix_MC("teacher"))
        return dataclasses.replace(loader, source=online_signals(compute_signals, model.mesh))
    parts = parts_by_rule(loader)
    order = [number for numbers, _ in parts for number in numbers]
    pairs_M = [[pairs[number] for number in order] for pairs in loader.pairs_M]
    texts = [
        [[p.prompts.teacher_ids, p.response_ids, *count_positions(p, positions)] for p in pairs] for pairs in pairs_M
    ]
    fingerprint = signals_fingerprint(model, teachers_M, scale, [texts, positions])
    if fingerprint not in known:
        offsets_M = [position_offsets(pairs, positions) for pairs in pairs_M]
        size = signal_bytes(model, offsets_M)
        store = choose_store(size, model.mesh) if train.teacher_signals == "cached" else train.teacher_signals
        rules = f" of {len(parts)} rules, each of which is read once" if len(parts) > 1 else ""
        print(f"teacher signals of {len(order)} pairs{rules}: {size / 2**20:.1f} MiB, cached on the {store}")
        computed = compute_in_parts([part for _, part in parts], teachers_M, scale, train.batch_size)
        folder = folder / fingerprint[:16] / f"process-{jax.process_index()}"
        known[fingerprint] = cached_signals(model, offsets_M, computed, store, folder)
    return dataclasses.replace(loader, source=in_order(known[fingerprint], order))


def parts_by_rule(loader: GroupLoader) -> list[tuple[list[int], GroupLoader]]:
    """Divides a group into the pairs of each rule, which the teacher then reads once.

    The beginnings that the parts leave out are of one length, so that they share their programs. A group stays whole
    where nothing is saved: of one rule, of rules that have a single pair each (as with demonstrations of its own in
    every prompt), or of members whose pairs divide differently.

    Returns:
      Of each part the numbers of its pairs, the same of every member, and a loader of them.
    """
    numbers_M, members = [numbers_by_rule(pairs) for pairs in loader.pairs_M], len(loader.pairs_M)
    whole = [(list(range(len(loader.pairs_M[0]))), loader)]
    if any(numbers != numbers_M[0] for numbers in numbers_M) or 2 * len(numbers_M[0]) > len(loader.pairs_M[0]):
        return whole
    groups_M = [[[pairs[number] for number in numbers] for pairs in loader.pairs_M] for numbers in numbers_M[0]]
    prefixes = equal_lengths([shared_prefix(pairs, loader.positions) for group_M in groups_M for pairs in group_M])
    if len(prefixes[0].teacher) <= loader.prefix_length("teacher"):
        return whole
    return [
        (numbers, dataclasses.replace(loader, pairs_M=group_M, prefixes_M=prefixes[first : first + members]))
        for numbers, group_M, first in zip(numbers_M[0], groups_M, range(0, len(prefixes), members), strict=True)
    ]


def compute_in_parts(
    parts: Sequence[GroupLoader], teachers_M: Adapter, scale: float, batch_size: int
) -> Iterator[tuple[Batch, Signals]]:
    """Yields batches of all pairs in order, one part after the other, with their signals."""
    batches = [sequential_batches(len(part.pairs_M[0]), batch_size, len(part.pairs_M)) for part in parts]
    smallest = [part.smallest_shape(numbers) for part, own in zip(parts, batches, strict=True) for numbers in own]
    shapes = choose_shapes(smallest, "teacher")
    for part, own in zip(parts, batches, strict=True):
        part = dataclasses.replace(part, shapes=shapes)
        compute_signals = make_teacher(part.model, teachers_M, scale, part.prefix_MC("teacher"))
        for numbers in own:
            batch = part.mesh_batch(numbers)
            yield batch, compute_signals(batch)


def in_order(source: SignalSource, order: Sequence[int]) -> SignalSource:
    """Returns a source by the pairs' own numbers of one whose pairs are in this order."""
    cached_number = {number: at for at, number in enumerate(order)}

    def fetch(numbers: PairNumbers, batch: Batch) -> Any:
        return source.fetch([[cached_number[number] for number in own] for own in numbers], batch)

    return SignalSource(fetch, source.put)


def sequential_batches(count: int, batch_size: int, members: int) -> list[PairNumbers]:
    """Returns the numbers of all `count` pairs in order, the same for every member."""
    return [[numbers] * members for numbers in in_batches(list(range(count)), batch_size)]


def plan_epoch(groups: Sequence[PairGroup], seeds: Sequence[int], epoch: int, batch_size: int) -> list[UpdateNumbers]:
    """Chooses the pairs of every update of an epoch: a batch of each group.

    The largest group is read once. Smaller ones start over, in a new order each time; of one whose batches are a share
    of the others', an epoch has some pairs only.

    Args:
      groups: of one member.
      seeds: of the members; each has its own order.
      batch_size: of the run.
    """
    steps = max(steps_per_epoch(len(group.pairs), batch_size) for group in groups)

    def batches_of(number: int, group: PairGroup, seed: int) -> list[Sequence[int]]:
        batches: list[Sequence[int]] = []
        for again in range(steps):
            if len(batches) >= steps:
                break
            order = epoch_order(len(group.pairs), seed, epoch, *((number, again) if number or again else ()))
            batches += in_batches(order, group.batch_size(batch_size))
        return batches[:steps]

    chosen = [
        zip(*(batches_of(number, group, seed) for seed in seeds), strict=True) for number, group in enumerate(groups)
    ]
    return [list(map(list, update)) for update in zip(*chosen, strict=True)]


def fetch_updates(loaders: Sequence[GroupLoader], updates: Sequence[UpdateNumbers]) -> Iterator[list[Fetched]]:
    """Yields updates in host memory, each fetched while the caller works with the one before."""

    def fetch(update: UpdateNumbers) -> list[Fetched]:
        return [loader.fetch(numbers) for loader, numbers in zip(loaders, update, strict=True)]

    return fetch_ahead(fetch, updates)


def put_update(loaders: Sequence[GroupLoader], fetched: Sequence[Fetched]) -> Update:
    """Puts a fetched update on the mesh."""
    return tuple(loader.put(group) for loader, group in zip(loaders, fetched, strict=True))


def abstract_updates(loaders: Sequence[GroupLoader], updates: Sequence[UpdateNumbers]) -> list[Update]:
    """Returns the shapes of the updates, each combination of padded sizes once: one program each."""
    examples = {}
    for update in updates:
        shapes = tuple(loader.shape_of(numbers) for loader, numbers in zip(loaders, update, strict=True))
        examples.setdefault(shapes, update)
    return [
        tuple(loader.abstract(numbers) for loader, numbers in zip(loaders, update, strict=True))
        for update in examples.values()
    ]
