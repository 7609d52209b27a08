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
from rdjax.data.batches import Slots, epoch_order, steps_per_epoch
from rdjax.data.pairs import Pair
from rdjax.distill.optimizer import learning_rate_schedule, make_optimizer
from rdjax.distill.step import (
    Objective,
    StepOptions,
    TrainState,
    evaluate_loss,
    init_state,
    train_step,
)
from rdjax.distill.updates import Updates
from rdjax.errors import UserError
from rdjax.metrics import MetricsLog, progress, show
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.sharding import replicated


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
    make = functools.partial(
        Updates.make, model=model, teachers_M=teachers_M, scale=stage.options.scale, train=config.train
    )
    train = make([member.train for member in members], stage.slots, stage.objective)
    validates = members[0].valid and config.train.valid_every
    if validates:
        valid = make([member.valid for member in members], stage.valid_slots, stage.valid_objective)
    step = functools.partial(
        train_step, graph=model.graph, optimizer=optimizer, objective=stage.objective, options=stage.options
    )
    with progress(steps, now.epoch * per_epoch, stage.name) as bar:
        for epoch in range(now.epoch + 1, config.train.epochs + 1):
            state, metrics = now.state, None
            orders = [epoch_order(count, member.seed, epoch) for member in members]
            for start in range(0, count, config.train.batch_size):
                chosen = [order[start : start + config.train.batch_size] for order in orders]
                batch, signals, _ = train.take(chosen)
                before, (state, metrics) = metrics, step(state, model.base, batch, signals, seeds_M)
                # The metrics of the step before: the device never waits for the log.
                show(bar, before)
            scalars = _by_member(metrics, members)
            _check_finite(stage, members, scalars, epoch)
            last = epoch == config.train.epochs
            best, best_losses = now.best, now.best_losses
            if not validates:
                best = _copy(state.adapter)
            elif _due(config.train.valid_every, epoch, last):
                losses = _validate(stage, model, valid, state.adapter)
                better = [new < old for new, old in zip(losses, best_losses, strict=True)]
                best = _choose(better, state.adapter, best)
                # Not min(): a loss that is not a number is no better, and must not stay.
                best_losses = [new if new < old else old for new, old in zip(losses, best_losses, strict=True)]
                for mine, loss in zip(scalars, losses, strict=True):
                    mine["valid_loss"] = loss
            now = Standing(state, best, best_losses, epoch)
            for member, mine in zip(members, scalars, strict=True):
                rate = float(schedule(epoch * per_epoch - 1))
                member.log.write(stage.name, epoch * per_epoch, {**mine, "epoch": epoch, "learning_rate": rate})
            if _due(config.train.checkpoint_every, epoch, last):
                record = {"epoch": epoch, "step": epoch * per_epoch, "best_losses": best_losses}
                checkpoints.save(epoch, {"state": state, "best": best}, record)
    return _finish(checkpoints, now)


def _by_member(metrics: dict[str, jax.Array], members: Sequence[Member]) -> list[dict[str, float]]:
    """Metrics [M] as each member's own numbers."""
    host = jax.device_get(metrics)
    return [{name: float(values[number]) for name, values in host.items()} for number in range(len(members))]


def _check_finite(stage: Stage, members: Sequence[Member], scalars: Sequence[dict[str, float]], epoch: int) -> None:
    for member, mine in zip(members, scalars, strict=True):
        if not math.isfinite(mine["loss"]):
            raise UserError(
                f"{stage.name}, seed {member.seed}: the loss is {mine['loss']} in epoch {epoch}; "
                "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
            )


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


def _validate(stage: Stage, model: LanguageModel, valid: Updates, adapters_M: Adapter) -> list[float]:
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
