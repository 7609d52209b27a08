"""Runs one stage: trains the adapters of its members, validates them, keeps the best, and resumes where it stopped.

Members are runs that differ in their seed, and so in their data, its order, their adapter and its dropout. They train
side by side over one copy of the base; each gets what it would get alone.
"""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import config_dict

from rdjax.data.groups import PairGroup
from rdjax.data.positions import LossPositions
from rdjax.distill.objective import Objective
from rdjax.distill.optimizer import learning_rate_schedule, make_optimizer
from rdjax.distill.programs import Program, compiling
from rdjax.distill.signals import PairNumbers
from rdjax.distill.step import StepSettings, TrainState, evaluate_loss, init_state, train_step
from rdjax.distill.updates import (
    GroupLoader,
    UpdateNumbers,
    abstract_updates,
    fetch_ahead,
    make_loader,
    place_update,
    plan_epoch,
    sequential_batches,
    with_signals,
)
from rdjax.errors import UserError
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import replicated
from rdjax.parallel.processes import EXIT_RERUN, deferred_sigterm, to_host
from rdjax.storage.checkpoint import Checkpoints
from rdjax.storage.metrics import MetricsLog, progress, show


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describes what a stage trains and how.

    Attributes:
      name: of its checkpoints and metrics.
      objective: what is minimised.
      positions: which positions enter it.
      valid_objective, valid_positions: likewise, of the loss that chooses the best epoch.
      scale, dropout: of the adapters.
      remat: what the backward pass recomputes.
    """

    name: str
    objective: Objective
    positions: LossPositions
    valid_objective: Objective
    valid_positions: LossPositions
    scale: float
    dropout: float
    remat: str


@dataclasses.dataclass(frozen=True)
class Member:
    """Describes one of the runs that train side by side.

    Attributes:
      seed: of the order of samples and of dropout.
      initial: the adapter to start from.
      teacher: the teacher's frozen adapter on the shared base.
      train: groups of pairs; every member has as many groups, and as many pairs in each.
      valid: groups of pairs, or none.
      log: where its metrics are written.
    """

    seed: int
    initial: Adapter
    teacher: Adapter
    train: Sequence[PairGroup]
    valid: Sequence[PairGroup]
    log: MetricsLog


class Progress(NamedTuple):
    """Holds what a stage has reached; its checkpoints contain this. Arrays are stacked over members."""

    state: TrainState
    best: Adapter
    best_losses: list[float]
    updates: int  # done


@dataclasses.dataclass(frozen=True)
class Job:
    """Holds everything that the loop over updates reads and does not change.

    Attributes:
      updates: the pairs of every update of all epochs.
      per_epoch: updates of an epoch.
      loaders: of each group.
      valid_batches, valid_loaders: likewise of validation; no loaders where nothing is validated.
      step: (state, base, update, seeds) -> (state, metrics [M]).
      evaluate: (adapters, base, update) -> loss [M].
    """

    stage: Stage
    model: LanguageModel
    members: Sequence[Member]
    config: config_dict.ConfigDict
    updates: Sequence[UpdateNumbers]
    per_epoch: int
    loaders: Sequence[GroupLoader]
    valid_batches: Sequence[Sequence[PairNumbers]]
    valid_loaders: Sequence[GroupLoader]
    step: functools.partial
    evaluate: functools.partial

    @property
    def seeds_M(self) -> np.ndarray:
        """Returns the members' seeds of dropout."""
        return np.array([member.seed for member in self.members], np.uint32)


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
      folder: of this stage's checkpoints; a stage that is found there resumes, or is done.

    Raises:
      UserError: a loss is not finite.
    """
    updates, per_epoch = plan_updates(members, config.train)
    optimizer = make_optimizer(config.optimizer, len(updates))
    checkpoints = Checkpoints(folder)
    reached = restore_progress(checkpoints, initial_progress(model, members, optimizer))
    for member in members:
        member.log.truncate(stage.name, reached.updates)
    if reached.updates < len(updates):
        job = make_job(stage, model, members, config, updates, per_epoch, optimizer)
        job = load_signals(job, reached.state, folder.parent / "signals")
        reached = train(job, reached, checkpoints)
    checkpoints.close()
    return [take_member(reached.best, number) for number in range(len(members))]


def plan_updates(members: Sequence[Member], train: config_dict.ConfigDict) -> tuple[list[UpdateNumbers], int]:
    """Chooses the pairs of every update of all epochs.

    Returns:
      The pair numbers of each update, and the number of updates in an epoch.
    """
    counts, seeds = [len(group.pairs) for group in members[0].train], [member.seed for member in members]
    epochs = [plan_epoch(counts, seeds, epoch, train.batch_size) for epoch in range(1, train.epochs + 1)]
    return [update for epoch in epochs for update in epoch], len(epochs[0])


def initial_progress(
    model: LanguageModel, members: Sequence[Member], optimizer: optax.GradientTransformation
) -> Progress:
    """Returns what a stage starts from, on the mesh."""
    initial_M = stack_adapters([member.initial for member in members])
    state = jax.jit(init_state, static_argnums=1, out_shardings=replicated(model.mesh))(initial_M, optimizer)
    return Progress(state, copy_adapters(state.adapter), [math.inf] * len(members), 0)


def restore_progress(checkpoints: Checkpoints, initial: Progress) -> Progress:
    """Returns the newest checkpoint of the stage, or the start."""
    if checkpoints.latest() is None:
        return initial
    saved, record = checkpoints.restore({"state": initial.state, "best": initial.best})
    return Progress(saved["state"], saved["best"], record["best_losses"], record["updates"])


def save_progress(checkpoints: Checkpoints, reached: Progress) -> None:
    """Writes a checkpoint."""
    record = {"updates": reached.updates, "best_losses": reached.best_losses}
    checkpoints.save(reached.updates, {"state": reached.state, "best": reached.best}, record)


def make_job(
    stage: Stage,
    model: LanguageModel,
    members: Sequence[Member],
    config: config_dict.ConfigDict,
    updates: Sequence[UpdateNumbers],
    per_epoch: int,
    optimizer: optax.GradientTransformation,
) -> Job:
    """Makes the loaders of all groups and binds the programs' static arguments."""
    settings = StepSettings(model.graph, stage.objective, stage.scale, stage.dropout, stage.remat)
    valid_settings = dataclasses.replace(settings, objective=stage.valid_objective, dropout=0.0)
    step = functools.partial(train_step, settings=settings, optimizer=optimizer)
    evaluate = functools.partial(evaluate_loss, settings=valid_settings)

    loaders = [
        # For all epochs, even where a stage resumes: its programs are then those of one that never stopped.
        make_loader(
            group_M, [update[number] for update in updates], stage.positions, stage.objective, model, config.train
        )
        for number, group_M in enumerate(groups_of([member.train for member in members]))
    ]
    valid_batches, valid_loaders = [], []
    for group_M in groups_of([member.valid for member in members]) if config.train.valid_every else []:
        batches = sequential_batches(len(group_M[0].pairs), config.train.batch_size, len(members))
        valid_batches.append(batches)
        valid_loaders.append(
            make_loader(group_M, batches, stage.valid_positions, stage.valid_objective, model, config.train)
        )
    return Job(stage, model, members, config, updates, per_epoch, loaders, valid_batches, valid_loaders, step, evaluate)


def groups_of(groups: Sequence[Sequence[PairGroup]]) -> list[tuple[PairGroup, ...]]:
    """Turns each member's groups into each group's members."""
    return [*zip(*groups, strict=True)]


def load_signals(job: Job, state: TrainState, folder: pathlib.Path) -> Job:
    """Computes the teachers' signals, and compiles the job's programs meanwhile.

    Args:
      folder: of signals that are cached on disk.
    """
    model, members = job.model, job.members
    updates = abstract_updates(job.loaders, job.updates)
    programs = [Program(job.step, (state, model.base, update, job.seeds_M)) for update in updates]
    for loader, batches in zip(job.valid_loaders, job.valid_batches, strict=True):
        updates = abstract_updates([loader], [[numbers] for numbers in batches])
        programs += [Program(job.evaluate, (state.adapter, model.base, update)) for update in updates]
    teachers_M = stack_adapters([member.teacher for member in members])
    for loader in job.loaders:
        print(loader.describe())
    with compiling(programs, model.mesh):
        loaders, valid_loaders = (
            [with_signals(loader, teachers_M, job.stage.scale, job.config.train, folder) for loader in own]
            for own in (job.loaders, job.valid_loaders)
        )
    return dataclasses.replace(job, loaders=loaders, valid_loaders=valid_loaders)


def train(job: Job, reached: Progress, checkpoints: Checkpoints) -> Progress:
    """Takes the updates that are left; saves, and ends the command, where a SIGTERM asks for it."""
    steps, settings, metrics = len(job.updates), job.config.train, None
    upcoming = fetch_ahead(job.loaders, job.updates[reached.updates :])
    with deferred_sigterm() as asked_to_stop, progress(steps, reached.updates, job.stage.name) as bar:
        for done, fetched in enumerate(upcoming, start=reached.updates + 1):
            previous = metrics
            update = place_update(job.loaders, fetched)
            state, metrics = job.step(reached.state, job.model.base, update, job.seeds_M)
            # The metrics of the step before: the device never waits for the log.
            show(bar, previous)
            reached, stop = reached._replace(state=state, updates=done), asked_to_stop()
            epoch, rest = divmod(done, job.per_epoch)
            if rest == 0:
                reached = end_epoch(job, reached, metrics, epoch)
            if stop or (rest == 0 and is_due(settings.checkpoint_every, epoch, done == steps)):
                save_progress(checkpoints, reached)
            if stop and done < steps:
                print(
                    f"told to end: {job.stage.name} is saved after update {done} of {steps}; "
                    "the same command goes on from there"
                )
                sys.exit(EXIT_RERUN)
    return reached


def end_epoch(job: Job, reached: Progress, metrics: dict[str, jax.Array], epoch: int) -> Progress:
    """Validates where it is time, keeps the best adapters, and writes the members' metrics."""
    scalars_M = metrics_by_member(metrics, len(job.members))
    check_finite(job, scalars_M, epoch)
    if not job.valid_loaders:
        reached = reached._replace(best=copy_adapters(reached.state.adapter))
    elif is_due(job.config.train.valid_every, epoch, reached.updates == len(job.updates)):
        losses = validate(job, reached.state.adapter)
        better = [new < old for new, old in zip(losses, reached.best_losses, strict=True)]
        reached = reached._replace(
            best=choose_adapters(better, reached.state.adapter, reached.best),
            # Not min(): a loss that is not a number is no better, and must not stay.
            best_losses=[new if new < old else old for new, old in zip(losses, reached.best_losses, strict=True)],
        )
        for scalars, loss in zip(scalars_M, losses, strict=True):
            scalars["valid_loss"] = loss
    schedule = learning_rate_schedule(job.config.optimizer, len(job.updates))
    rate = float(schedule(reached.updates - 1))
    for member, scalars in zip(job.members, scalars_M, strict=True):
        member.log.write(job.stage.name, reached.updates, {**scalars, "epoch": epoch, "learning_rate": rate})
    return reached


def validate(job: Job, adapters_M: Adapter) -> list[float]:
    """Computes each member's validation loss: of each group the mean over its predictions, times its weight."""
    losses_M = np.zeros(len(job.members))
    for loader, batches in zip(job.valid_loaders, job.valid_batches, strict=True):
        totals_M, weights_M = np.zeros((2, len(job.members)))
        for numbers in batches:
            update = place_update([loader], [loader.fetch(numbers)])
            weight_M = loader.total_weights(numbers)
            totals_M += np.asarray(job.evaluate(adapters_M, job.model.base, update)) * weight_M
            weights_M += weight_M
        losses_M += totals_M / weights_M
    return losses_M.tolist()


def is_due(every: int, epoch: int, last: bool) -> bool:
    """Says whether something that happens in every so many epochs, and in the last one, happens now."""
    return bool(every) and (epoch % every == 0 or last)


def metrics_by_member(metrics: dict[str, jax.Array], members: int) -> list[dict[str, float]]:
    """Splits metrics [M] into each member's numbers."""
    host = to_host(metrics)
    return [{name: float(values[number]) for name, values in host.items()} for number in range(members)]


def check_finite(job: Job, scalars_M: Sequence[dict[str, float]], epoch: int) -> None:
    """Raises a UserError where a member's loss is not finite."""
    for member, scalars in zip(job.members, scalars_M, strict=True):
        if not math.isfinite(scalars["loss"]):
            raise UserError(
                f"{job.stage.name}, seed {member.seed}: the loss is {scalars['loss']} in epoch {epoch}; "
                "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
            )


def stack_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """Stacks adapters along a new first axis M."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def copy_adapters(adapters_M: Adapter) -> Adapter:
    """Copies adapters, because the next step donates them."""
    return jax.tree.map(jnp.copy, adapters_M)


def take_member(adapters_M: Adapter, number: int) -> Adapter:
    """Returns one member's adapter."""
    return jax.tree.map(lambda leaf: leaf[number], adapters_M)


def choose_adapters(first: Sequence[bool], one: Adapter, other: Adapter) -> Adapter:
    """Returns, as new arrays, each member's adapter of `one` where `first` is true, else of `other`."""
    first_M = np.array(first)

    def choose(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.where(first_M.reshape(-1, *(1,) * (left.ndim - 1)), left, right)

    return jax.tree.map(choose, one, other)
