"""One stage: trains the adapters of one or more members, validates, keeps the best, and resumes where it stopped.

Members are runs that differ in their seed, and so in their data, its order, their adapter and its dropout. They
train side by side over one copy of the base; each gets what it would get alone.
"""

import dataclasses
import functools
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
from rdjax.distill.step import (
    Objective,
    StepOptions,
    TrainState,
    evaluate_loss,
    init_state,
    teacher_signals,
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
    count = len(members[0].train)
    per_epoch = steps_per_epoch(count, config.train.batch_size)
    steps = per_epoch * config.train.epochs
    optimizer = make_optimizer(config.optimizer, steps)
    schedule = learning_rate_schedule(config.optimizer, steps)
    batches = _Batches(model, config.train.batch_size, config.train.accumulation)
    teachers_M = _stack([member.teacher for member in members])
    seeds_M = jnp.array([member.seed for member in members], jnp.uint32)
    state = init_state(_stack([member.initial for member in members]), optimizer)
    state = jax.device_put(state, replicated(model.mesh))
    checkpoints = Checkpoints(folder)
    now = _restore(checkpoints, Standing(state, _copy(state.adapter), [float("inf")] * len(members), 0))
    for member in members:
        member.log.truncate(stage.name, now.epoch * per_epoch)
    update = functools.partial(_update, stage, model, optimizer, teachers_M, seeds_M)
    shape = batch_shape([pair for member in members for pair in member.train], stage.slots)
    with progress(steps, now.epoch * per_epoch, stage.name) as bar:
        for epoch in range(now.epoch + 1, config.train.epochs + 1):
            orders = [epoch_order(count, member.seed, epoch) for member in members]
            state, metrics = now.state, None
            for start in range(0, count, config.train.batch_size):
                chosen = [
                    [member.train[index] for index in order[start : start + config.train.batch_size]]
                    for member, order in zip(members, orders, strict=True)
                ]
                batch, _ = batches.update(chosen, shape, stage.slots)
                before, (state, metrics) = metrics, update(state, batch)
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
            if not (members[0].valid and config.train.valid_every):
                best = _copy(state.adapter)
            elif _due(config.train.valid_every, epoch, last):
                losses = _validate(stage, model, teachers_M, batches, members, state.adapter)
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
    checkpoints.close()
    return [_take(now.best, number) for number in range(len(members))]


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
class _Batches:
    """Makes updates of one shape and puts them on the mesh."""

    model: LanguageModel
    batch_size: int
    accumulation: int

    def update(self, chosen: Sequence[Sequence[Pair]], shape: Shape, slots: Slots) -> tuple[Batch, list[float]]:
        """An update's micro-batches [M, A, B, ...] on the mesh, and each member's slot weight before it was made 1.

        Rows that are missing are padding.
        """
        rows = round_up(self.batch_size // self.accumulation, row_multiple(self.model.mesh))
        # A mesh that wants more rows in a micro-batch needs fewer of them.
        count = -(-self.batch_size // rows)
        eos = self.model.tokenizer.eos_token_id
        made = [collate(pairs, rows * count, shape, slots, eos) for pairs in chosen]
        weights = [float(batch.weight_BP.sum()) for batch in made]
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *(as_update(batch, count) for batch in made))
        return jax.device_put(batch, rows_sharding(self.model.mesh, leading=2)), weights


def _signals(objective: Objective, stage: Stage, model: LanguageModel, teachers_M, batch: Batch) -> Signals | None:
    """What an objective wants of the teachers: nothing when tuning on the response."""
    if objective.kind != "distill":
        return None
    return teacher_signals(model.graph, model.base, teachers_M, batch, stage.options.scale)


def _update(stage: Stage, model: LanguageModel, optimizer, teachers_M, seeds_M, state: TrainState, batch: Batch):
    signals = _signals(stage.objective, stage, model, teachers_M, batch)
    return train_step(
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


def _validate(
    stage: Stage, model: LanguageModel, teachers_M, batches: _Batches, members: Sequence[Member], adapters_M: Adapter
) -> list[float]:
    """Each member's mean validation loss over all slots of its validation pairs."""
    shape = batch_shape([pair for member in members for pair in member.valid], stage.valid_slots)
    totals, slots = np.zeros(len(members)), np.zeros(len(members))
    for start in range(0, len(members[0].valid), batches.batch_size):
        chosen = [member.valid[start : start + batches.batch_size] for member in members]
        batch, weights = batches.update(chosen, shape, stage.valid_slots)
        signals = _signals(stage.valid_objective, stage, model, teachers_M, batch)
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
