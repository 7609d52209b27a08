"""One stage: trains the adapters of one or more members, validates, keeps the best, and resumes where it stopped.

Members are runs that differ in their seed, and so in their data, its order, their adapter and its dropout. They
train side by side over one copy of the base; each gets what it would get alone.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from rdjax.checkpoint import Checkpoints
from rdjax.data.batches import (
    Batch,
    Shape,
    Slots,
    as_update,
    batch_shape,
    collate,
    epoch_order,
    round_up,
    steps_per_epoch,
)
from rdjax.data.pairs import Pair
from rdjax.distill.optimizer import learning_rate_schedule, make_optimizer
from rdjax.distill.signals import SignalSource, cached_signals, online_signals
from rdjax.distill.step import (
    Objective,
    StepOptions,
    TrainState,
    evaluate_loss,
    init_state,
    train_step,
)
from rdjax.distill.teacher import Signals
from rdjax.errors import UserError
from rdjax.metrics import MetricsLog, progress, show
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.sharding import replicated, row_multiple, rows_sharding


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage trains and how.

    Attributes:
      name: names its checkpoints and metrics.
      objective: what is minimised.
      valid_objective: what chooses the best epoch.
      options: of the step.
      slots, valid_slots: which positions enter the losses.
    """

    name: str
    objective: Objective
    valid_objective: Objective
    options: StepOptions
    slots: Slots
    valid_slots: Slots


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the runs that train side by side.

    Attributes:
      seed: of the order of samples and of dropout.
      initial: the adapter to start from.
      teacher: the teacher's frozen adapter on the shared base.
      train, valid: pairs; all members have as many.
      log: where its metrics go.
    """

    seed: int
    initial: Adapter
    teacher: Adapter
    train: Sequence[Pair]
    valid: Sequence[Pair]
    log: MetricsLog


class Standing(NamedTuple):
    """Where a stage stands between two epochs; what its checkpoints hold. Arrays are stacked over members."""

    state: TrainState
    best: Adapter
    best_losses: list[float]
    epoch: int


def run_stage(
    stage: Stage,
    model: LanguageModel,
    members: Sequence[Member],
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
) -> list[Adapter]:
    """Trains the members' adapters and returns the best state of each (the last one where nothing is validated).

    Args:
      config: the run's; its `train` and `optimizer` are read.
      folder: of this stage's checkpoints; a stage found there goes on, or is done.
    """
    count, batch_size = len(members[0].train), config.train.batch_size
    per_epoch = steps_per_epoch(count, batch_size)
    steps = per_epoch * config.train.epochs
    optimizer = make_optimizer(config.optimizer, steps)
    schedule = learning_rate_schedule(config.optimizer, steps)
    teachers_M = _stack([member.teacher for member in members])
    seeds_M = jnp.array([member.seed for member in members], jnp.uint32)
    state = init_state(_stack([member.initial for member in members]), optimizer)
    state = jax.device_put(state, replicated(model.mesh))
    checkpoints = Checkpoints(folder)
    now = _restore(checkpoints, Standing(state, _copy(state.adapter), [float("inf")] * len(members), 0))
    for member in members:
        member.log.truncate(stage.name, now.epoch * per_epoch)
    if now.epoch == config.train.epochs:
        return _finish(checkpoints, now)
    teach = model, teachers_M, stage.options.scale, config.train
    train = _Part.make([member.train for member in members], stage.slots, stage.objective, *teach)
    validates = members[0].valid and config.train.valid_every
    if validates:
        pairs = [member.valid for member in members]
        valid = _Part.make(pairs, stage.valid_slots, stage.valid_objective, *teach)
    with progress(steps, now.epoch * per_epoch, stage.name) as bar:
        for epoch in range(now.epoch + 1, config.train.epochs + 1):
            orders = [epoch_order(count, member.seed, epoch) for member in members]
            state, metrics = now.state, None
            for start in range(0, count, batch_size):
                batch, signals, _ = train.take([order[start : start + batch_size] for order in orders])
                before = metrics
                state, metrics = train_step(
                    state,
                    model.base,
                    batch,
                    signals,
                    seeds_M,
                    graph=model.graph,
                    optimizer=optimizer,
                    objective=stage.objective,
                    options=stage.options,
                )
                # The metrics of the step before: the device never waits for the log.
                show(bar, before)
            host = jax.device_get(metrics)
            scalars = [{name: float(values[at]) for name, values in host.items()} for at in range(len(members))]
            for member, mine in zip(members, scalars, strict=True):
                if not math.isfinite(mine["loss"]):
                    raise UserError(
                        f"{stage.name}, seed {member.seed}: the loss is {mine['loss']} in epoch {epoch}; "
                        "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
                    )
                mine |= {"epoch": epoch, "learning_rate": float(schedule(epoch * per_epoch - 1))}
            last = epoch == config.train.epochs
            best, best_losses = now.best, now.best_losses
            if not validates:
                best = _copy(state.adapter)
            elif _due(config.train.valid_every, epoch, last):
                losses = _validate(stage, model, valid, state.adapter)
                better = [new < old for new, old in zip(losses, best_losses, strict=True)]
                best, best_losses = _choose(better, state.adapter, best), list(map(min, losses, best_losses))
                for mine, loss in zip(scalars, losses, strict=True):
                    mine["valid_loss"] = loss
            now = Standing(state, best, best_losses, epoch)
            for member, mine in zip(members, scalars, strict=True):
                member.log.write(stage.name, epoch * per_epoch, mine)
            if _due(config.train.checkpoint_every, epoch, last):
                record = {"epoch": epoch, "step": epoch * per_epoch, "best_losses": best_losses}
                checkpoints.save(epoch, {"state": state, "best": best}, record)
    return _finish(checkpoints, now)


def _finish(checkpoints: Checkpoints, now: Standing) -> list[Adapter]:
    checkpoints.close()
    return [_take(now.best, number) for number in range(len(now.best_losses))]


def _stack(adapters: Sequence[Adapter]) -> Adapter:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def _copy(adapters_M: Adapter) -> Adapter:
    """A copy that outlives the next step, which donates the original."""
    return jax.tree.map(jnp.copy, adapters_M)


def _choose(first: Sequence[bool], one: Adapter, other: Adapter) -> Adapter:
    """Of each member `one` where `first` says so, else the other; new arrays."""
    first_M = jnp.array(first)

    def pick(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.where(first_M.reshape(-1, *(1,) * (left.ndim - 1)), left, right)

    return jax.tree.map(pick, one, other)


def _take(adapters_M: Adapter, number: int) -> Adapter:
    return jax.tree.map(lambda leaf: leaf[number], adapters_M)


def _due(every: int, epoch: int, last: bool) -> bool:
    return bool(every) and (epoch % every == 0 or last)


def _restore(checkpoints: Checkpoints, fresh: Standing) -> Standing:
    """The newest checkpoint of the stage, or a fresh start."""
    if checkpoints.latest() is None:
        return fresh
    saved, record = checkpoints.restore({"state": fresh.state, "best": fresh.best})
    return Standing(saved["state"], saved["best"], record["best_losses"], record["epoch"])


@dataclasses.dataclass(frozen=True)
class _Part:
    """The members' training or validation pairs: makes updates of one shape, with the teacher's signals.

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
    ) -> "_Part":
        """A part of a stage; where the objective distils, its signals are made here, once, or online."""
        shape = batch_shape([pair for own in pairs for pair in own], slots)
        rows = round_up(train.batch_size // train.accumulation, row_multiple(model.mesh))
        # A mesh that wants more rows in a micro-batch needs fewer of them.
        part = cls(pairs, shape, slots, rows, -(-train.batch_size // rows), train.batch_size, model)
        if objective.kind != "distill":
            return part
        if train.teacher_signals == "online":
            return dataclasses.replace(part, source=online_signals(model, teachers_M, scale))
        source = cached_signals(model, teachers_M, scale, len(pairs), len(pairs[0]), train.batch_size, part.batch)
        return dataclasses.replace(part, source=source)

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


def _validate(stage: Stage, model: LanguageModel, valid: _Part, adapters_M: Adapter) -> list[float]:
    """Each member's mean validation loss over all slots of its validation pairs."""
    members, count = len(valid.pairs), len(valid.pairs[0])
    totals, slots = np.zeros(members), np.zeros(members)
    for start in range(0, count, valid.batch_size):
        numbers = list(range(start, min(start + valid.batch_size, count)))
        batch, signals, weights = valid.take([numbers] * members)
        losses_M = evaluate_loss(
            adapters_M,
            model.base,
            batch,
            signals,
            graph=model.graph,
            objective=stage.valid_objective,
            options=stage.options,
        )
        totals, slots = totals + np.asarray(losses_M) * weights, slots + weights
    return (totals / slots).tolist()
