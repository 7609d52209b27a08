"""One stage of a run: trains one adapter, validates, keeps the best, and resumes where it was stopped."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rdjax.checkpoint import Checkpoints
from rdjax.data.batches import Batch, Shape, Slots, as_update, batch_shape, collate, epoch_order, steps_per_epoch
from rdjax.data.pairs import Pair
from rdjax.distill.optimizer import learning_rate_schedule, make_optimizer
from rdjax.distill.step import Objective, StepOptions, evaluate_loss, init_state, teacher_signals, train_step
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
      slots: which positions enter the losses.
    """

    name: str
    objective: Objective
    valid_objective: Objective
    options: StepOptions
    slots: Slots


def run_stage(
    stage: Stage,
    model: LanguageModel,
    initial: Adapter,
    teacher: Adapter | None,
    train: Sequence[Pair],
    valid: Sequence[Pair],
    config: Any,
    checkpoints: pathlib.Path,
    log: MetricsLog,
) -> Adapter:
    """Trains an adapter and returns its best state (the last one where nothing is validated).

    Args:
      initial: the adapter to start from.
      teacher: the teacher's frozen adapter on the shared base, or None.
      config: the run's; its `seed`, `train` and `optimizer` are read.
      checkpoints: folder of this stage; a stage found there goes on, or is done.
    """
    per_epoch = steps_per_epoch(len(train), config.train.batch_size)
    steps = per_epoch * config.train.epochs
    optimizer = make_optimizer(config.optimizer, steps)
    schedule = learning_rate_schedule(config.optimizer, steps)
    batches = _Batches(
        model, stage.slots, config.train.batch_size, config.train.accumulation, batch_shape(train, stage.slots)
    )
    loss_of = functools.partial(_validate, stage, model, teacher, batches, valid)
    state = jax.device_put(init_state(initial, optimizer), replicated(model.mesh))
    best, best_loss, start = jax.tree.map(jnp.copy, state.adapter), float("inf"), 0
    saves = Checkpoints(checkpoints)
    if saves.latest() is not None:
        saved, record = saves.restore({"state": state, "best": best})
        state, best = saved["state"], saved["best"]
        best_loss, start = record["best_loss"], record["epoch"]
    log.truncate(stage.name, start * per_epoch)
    if start == config.train.epochs:
        return best
    with progress(steps, start * per_epoch, stage.name) as bar:
        for epoch in range(start, config.train.epochs):
            order, last = epoch_order(len(train), config.seed, epoch), None
            for number in range(per_epoch):
                chosen = order[number * config.train.batch_size : (number + 1) * config.train.batch_size]
                batch = batches.update([train[index] for index in chosen])
                state, metrics = _update(stage, model, optimizer, teacher, state, batch, config.seed)
                # The metrics of the step before: the device never waits for the log.
                if last is not None:
                    show(bar, loss=float(last["loss"]))
                last = metrics
            step = (epoch + 1) * per_epoch
            scalars = {name: float(value) for name, value in last.items()}
            show(bar, loss=scalars["loss"], valid=best_loss)
            scalars |= {"epoch": epoch + 1, "learning_rate": float(schedule(step - 1))}
            final = epoch + 1 == config.train.epochs
            every = config.train.valid_every
            if valid and every and ((epoch + 1) % every == 0 or final):
                scalars["valid_loss"] = loss_of(state.adapter)
                if scalars["valid_loss"] < best_loss:
                    best, best_loss = jax.tree.map(jnp.copy, state.adapter), scalars["valid_loss"]
            elif not (valid and every):
                best = state.adapter
            log.write(stage.name, step, scalars)
            if final or (epoch + 1) % config.train.checkpoint_every == 0:
                record = {"epoch": epoch + 1, "step": step, "best_loss": best_loss}
                saves.save(epoch + 1, {"state": state, "best": best}, record)
    saves.close()
    return best


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Makes updates of one shape and puts them on the mesh."""

    model: LanguageModel
    slots: Slots
    batch_size: int
    accumulation: int
    shape: Shape

    def update(self, pairs: Sequence[Pair]) -> Batch:
        """An update's micro-batches [A, B, ...] on the mesh; rows that are missing are padding."""
        multiple = row_multiple(self.model.mesh)
        micro = -(-self.batch_size // self.accumulation // multiple) * multiple
        eos = self.model.tokenizer.eos_token_id
        batch = collate(pairs, micro * self.accumulation, self.shape, self.slots, eos)
        return jax.device_put(as_update(batch, self.accumulation), rows_sharding(self.model.mesh, leading=1))


def _update(stage: Stage, model: LanguageModel, optimizer, teacher, state, batch: Batch, seed: int):
    signals = None
    if stage.objective.kind == "distill":
        signals = teacher_signals(model.graph, model.base, teacher, batch, stage.options.scale)
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
    """The mean validation loss, every update-sized part weighted by its rows."""
    valid_batches = dataclasses.replace(batches, shape=batch_shape(valid, stage.slots))
    total = 0.0
    for start in range(0, len(valid), batches.batch_size):
        part = valid[start : start + batches.batch_size]
        batch = valid_batches.update(part)
        signals = None
        if stage.valid_objective.kind == "distill":
            signals = teacher_signals(model.graph, model.base, teacher, batch, stage.options.scale)
        loss = evaluate_loss(
            adapter,
            model.base,
            batch,
            signals,
            graph=model.graph,
            objective=stage.valid_objective,
            options=stage.options,
        )
        total += float(loss) * len(part)
    return total / len(valid)
