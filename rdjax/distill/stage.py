"""One stage of a run: trains one adapter, validates, keeps the best, and resumes where it was stopped."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
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


class Standing(NamedTuple):
    """Where a stage stands between two epochs; what its checkpoints hold."""

    state: TrainState
    best: Adapter
    best_loss: float
    epoch: int


def run_stage(
    stage: Stage,
    model: LanguageModel,
    initial: Adapter,
    teacher: Adapter,
    train: Sequence[Pair],
    valid: Sequence[Pair],
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
    log: MetricsLog,
) -> Adapter:
    """Trains an adapter and returns its best state (the last one where nothing is validated).

    Args:
      initial: the adapter to start from.
      teacher: the teacher's frozen adapter on the shared base.
      config: the run's; its `seed`, `train` and `optimizer` are read.
      folder: of this stage's checkpoints; a stage found there goes on, or is done.
    """
    per_epoch = steps_per_epoch(len(train), config.train.batch_size)
    steps = per_epoch * config.train.epochs
    optimizer = make_optimizer(config.optimizer, steps)
    schedule = learning_rate_schedule(config.optimizer, steps)
    batches = _Batches(model, config.train.batch_size, config.train.accumulation)
    # A copy, since steps donate their state: the initial adapter may be the teacher's too.
    state = jax.device_put(init_state(_copy(initial), optimizer), replicated(model.mesh))
    checkpoints = Checkpoints(folder)
    now = _restore(checkpoints, Standing(state, _copy(state.adapter), float("inf"), 0))
    log.truncate(stage.name, now.epoch * per_epoch)
    update = functools.partial(_update, stage, model, optimizer, teacher, seed=config.seed)
    shape = batch_shape(train, stage.slots)
    with progress(steps, now.epoch * per_epoch, stage.name) as bar:
        for epoch in range(now.epoch + 1, config.train.epochs + 1):
            order = epoch_order(len(train), config.seed, epoch)
            state, metrics = now.state, None
            for start in range(0, len(train), config.train.batch_size):
                chosen = [train[index] for index in order[start : start + config.train.batch_size]]
                batch, _ = batches.update(chosen, shape, stage.slots)
                before, (state, metrics) = metrics, update(state, batch)
                # The metrics of the step before: the device never waits for the log.
                show(bar, before)
            scalars = {name: float(value) for name, value in metrics.items()}
            if not math.isfinite(scalars["loss"]):
                raise UserError(
                    f"{stage.name}: the loss is {scalars['loss']} in epoch {epoch}; "
                    "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
                )
            scalars |= {"epoch": epoch, "learning_rate": float(schedule(epoch * per_epoch - 1))}
            last = epoch == config.train.epochs
            if _due(config.train.valid_every, epoch, last) and valid:
                scalars["valid_loss"] = _validate(stage, model, teacher, batches, valid, state.adapter)
                better = scalars["valid_loss"] < now.best_loss
                kept = (_copy(state.adapter), scalars["valid_loss"]) if better else (now.best, now.best_loss)
                now = Standing(state, *kept, epoch)
            else:
                validated = valid and config.train.valid_every
                now = Standing(state, now.best if validated else _copy(state.adapter), now.best_loss, epoch)
            log.write(stage.name, epoch * per_epoch, scalars)
            if _due(config.train.checkpoint_every, epoch, last):
                record = {"epoch": epoch, "step": epoch * per_epoch, "best_loss": now.best_loss}
                checkpoints.save(epoch, {"state": now.state, "best": now.best}, record)
    checkpoints.close()
    return now.best


def _copy(adapter: Adapter) -> Adapter:
    """A copy that outlives the next step, which donates the original."""
    return jax.tree.map(jnp.copy, adapter)


def _due(every: int, epoch: int, last: bool) -> bool:
    return bool(every) and (epoch % every == 0 or last)


def _restore(checkpoints: Checkpoints, fresh: Standing) -> Standing:
    """The newest checkpoint of the stage, or a fresh start."""
    if checkpoints.latest() is None:
        return fresh
    saved, record = checkpoints.restore({"state": fresh.state, "best": fresh.best})
    return Standing(saved["state"], saved["best"], record["best_loss"], record["epoch"])


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Makes updates of one shape and puts them on the mesh."""

    model: LanguageModel
    batch_size: int
    accumulation: int

    def update(self, pairs: Sequence[Pair], shape: Shape, slots: Slots) -> tuple[Batch, float]:
        """An update's micro-batches [A, B, ...] on the mesh, and the weight of its slots before it was made 1.

        Rows that are missing are padding.
        """
        rows = round_up(self.batch_size // self.accumulation, row_multiple(self.model.mesh))
        # A mesh that wants more rows in a micro-batch needs fewer of them.
        count = -(-self.batch_size // rows)
        batch = collate(pairs, rows * count, shape, slots, self.model.tokenizer.eos_token_id)
        weight = float(batch.weight_BP.sum())
        return jax.device_put(as_update(batch, count), rows_sharding(self.model.mesh, leading=1)), weight


def _signals(objective: Objective, stage: Stage, model: LanguageModel, teacher, batch: Batch) -> Signals | None:
    """What an objective wants of the teacher: nothing when tuning on the response."""
    if objective.kind != "distill":
        return None
    return teacher_signals(model.graph, model.base, teacher, batch, stage.options.scale)


def _update(stage: Stage, model: LanguageModel, optimizer, teacher, state: TrainState, batch: Batch, seed: int):
    signals = _signals(stage.objective, stage, model, teacher, batch)
    return train_step(
        state,
        model.base,
        batch,
        signals,
        graph=model.graph,
        optimizer=optimizer,
        objective=stage.objective,
        options=stage.options,
        seed=seed,
    )


def _validate(stage: Stage, model: LanguageModel, teacher, batches: _Batches, valid: Sequence[Pair], adapter) -> float:
    """The mean validation loss over all slots of the validation pairs."""
    shape, total, slots = batch_shape(valid, stage.valid_slots), 0.0, 0.0
    for start in range(0, len(valid), batches.batch_size):
        batch, weight = batches.update(valid[start : start + batches.batch_size], shape, stage.valid_slots)
        signals = _signals(stage.valid_objective, stage, model, teacher, batch)
        loss = evaluate_loss(
            adapter,
            model.base,
            batch,
            signals,
            graph=model.graph,
            objective=stage.valid_objective,
            options=stage.options,
        )
        total, slots = total + float(loss) * weight, slots + weight
    return total / slots
