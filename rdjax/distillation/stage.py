"""Runs one stage: trains the adapters of its members, validates them, keeps the best, and resumes where it stopped.

Members are runs that differ in their seed, and so in their data, its order, their adapter and its dropout. They train
side by side over one copy of the base; each gets what it would get alone.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from ml_collections import config_dict

from rdjax.data.batches import with_shares
from rdjax.data.groups import PairGroup
from rdjax.data.positions import LossPositions
from rdjax.distillation.finite import LOWER_RATE, Place, check_losses, check_skipped
from rdjax.distillation.objective import Objective
from rdjax.distillation.optimizer import learning_rate_schedule, make_optimizer
from rdjax.distillation.profile import Profile
from rdjax.distillation.programs import Program, compiling
from rdjax.distillation.progress import (
    Progress,
    copy_adapters,
    has_converged,
    initial_progress,
    keep_best,
    restore_progress,
    save_progress,
    stack_adapters,
    take_member,
)
from rdjax.distillation.signals import PairNumbers, SignalSource
from rdjax.distillation.step import StepSettings, TrainState, evaluate_loss, train_step
from rdjax.distillation.updates import (
    GroupLoader,
    UpdateNumbers,
    abstract_updates,
    fetch_updates,
    make_loader,
    place_update,
    plan_epoch,
    sequential_batches,
    with_signals,
)
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.processes import deferred_signals, end_with, to_host
from rdjax.storage.checkpoint import Checkpoints
from rdjax.storage.metrics import MetricsLog, progress, show

VALIDATIONS = 20  # of a run whose length is a number of updates


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describes what a stage trains and how.

    Attributes:
      name: of its checkpoints and metrics.
      objectives: what is minimised, of each group of pairs; the task's own pairs come first.
      positions: which positions enter it.
      valid_objective, valid_positions: likewise, of the loss that chooses the best epoch.
      scale, dropout: of the adapters.
      remat: what the backward pass recomputes.
    """

    name: str
    objectives: tuple[Objective, ...]
    positions: LossPositions
    valid_objective: Objective
    valid_positions: LossPositions
    scale: float
    dropout: float
    remat: str

    @property
    def objective(self) -> Objective:
        """Returns what is minimised of the task's pairs."""
        return self.objectives[0]


@dataclasses.dataclass(frozen=True)
class Member:
    """Describes one of the runs that train side by side.

    Attributes:
      seed: of the order of samples and of dropout.
      initial: the adapter to start from.
      teachers: of each group, the teacher's frozen adapter on the shared base.
      train: groups of pairs; every member has as many groups, and as many pairs in each.
      valid: pairs of the first group's kind for validation, or None.
      log: where its metrics are written.
    """

    seed: int
    initial: Adapter
    teachers: Sequence[Adapter]
    train: Sequence[PairGroup]
    valid: PairGroup | None
    log: MetricsLog


class Trained(NamedTuple):
    """Holds the result of a member: its adapter, its validation loss now and before the first update, and its rate.

    The losses are infinite where there were no validations.
    """

    adapter: Adapter
    valid_loss: float
    start_loss: float
    rate: float


@dataclasses.dataclass(frozen=True)
class Job:
    """Holds everything that the loop over updates reads and does not change.

    Attributes:
      updates: the pairs of every update.
      per_epoch: updates of an epoch.
      interval: updates between two points at which a validation or checkpoint may be due.
      loaders: of each group.
      valid_batches, valid_loader: the pairs of every batch of validation, and their loader; None: nothing is validated.
      optimizer: of all updates.
      folder: of checkpoints.
      step: (state, base, update, seeds) -> (state, metrics [M]).
      evaluate: (adapters, base, update) -> loss [M].
    """

    stage: Stage
    model: LanguageModel
    members: Sequence[Member]
    config: config_dict.ConfigDict
    updates: Sequence[UpdateNumbers]
    per_epoch: int
    interval: int
    loaders: Sequence[GroupLoader]
    valid_batches: Sequence[PairNumbers]
    valid_loader: GroupLoader | None
    optimizer: optax.GradientTransformation
    folder: pathlib.Path
    step: functools.partial
    evaluate: functools.partial

    @property
    def seeds_M(self) -> np.ndarray:
        """Returns the members' seeds of dropout."""
        return np.array([member.seed for member in self.members], np.uint32)

    @property
    def place(self) -> Place:
        """Returns what messages about the stage's numbers name."""
        return Place(self.stage.name, [member.seed for member in self.members], self.folder)


def run_stage(
    stage: Stage,
    model: LanguageModel,
    members: Sequence[Member],
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
) -> list[Trained]:
    """Trains the members' adapters.

    Args:
      config: the run's; its `train` and `optimizer` are read. The learning rate is a number.
      folder: of this stage's checkpoints; a stage that is found there resumes, or is done.

    Returns:
      The best state of each member, or the last one where nothing is validated, with its losses.

    Raises:
      DivergedError: a loss is not finite.
    """
    job = make_job(stage, model, members, config, folder)
    checkpoints, pairs = Checkpoints(folder), hash_pairs(members)
    initial = initial_progress([member.initial for member in members], job.optimizer, model.mesh, pairs)
    reached = restore_progress(checkpoints, initial)
    for member in members:
        # From the start on, the validation before the first update is made and logged again.
        member.log.truncate(stage.name, reached.updates or -1)
    if reached.updates < len(job.updates) and not has_converged(reached, config.train):
        reached = train(load_signals(job, reached.state, folder.parent / "signals"), reached, checkpoints)
    checkpoints.close()
    rate = config.optimizer.learning_rate
    return [
        Trained(take_member(reached.best, number), reached.best_losses[number], reached.start_losses[number], rate)
        for number in range(len(members))
    ]


def hash_pairs(members: Sequence[Member]) -> str:
    """Hashes the tokens of all pairs, by which checkpoints know what they were trained on."""
    digest = hashlib.sha256()
    groups = (group for member in members for group in (*member.train, member.valid) if group is not None)
    for group in groups:
        digest.update(b"group")
        for pair in group.pairs:
            for ids in (pair.prompts.teacher_ids, pair.prompts.student_ids, pair.response_ids, (pair.ended,)):
                digest.update(len(ids).to_bytes(4, "little") + np.array(ids, np.int32).tobytes())
    return digest.hexdigest()


def plan_updates(members: Sequence[Member], train: config_dict.ConfigDict) -> tuple[list[UpdateNumbers], int]:
    """Chooses the pairs of every update.

    Returns:
      The pair numbers of each update, and the number of updates in an epoch.
    """
    groups, seeds = members[0].train, [member.seed for member in members]
    first = plan_epoch(groups, seeds, 1, train.batch_size)
    epochs = train.epochs or -(-train.updates // len(first))
    later = [plan_epoch(groups, seeds, epoch, train.batch_size) for epoch in range(2, epochs + 1)]
    updates = [update for epoch in (first, *later) for update in epoch]
    return updates if train.epochs else updates[: train.updates], len(first)


def make_job(
    stage: Stage,
    model: LanguageModel,
    members: Sequence[Member],
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
) -> Job:
    """Plans the updates, makes the loaders of all groups, without signals, and binds the programs' static arguments.

    Arguments as `run_stage`.
    """
    updates, per_epoch = plan_updates(members, config.train)
    optimizer = make_optimizer(config.optimizer, len(updates))
    settings = StepSettings(model.graph, stage.objectives, stage.scale, stage.dropout, stage.remat)
    valid_settings = dataclasses.replace(settings, objectives=(stage.valid_objective,), dropout=0.0)
    step = functools.partial(train_step, settings=settings, optimizer=optimizer)
    evaluate = functools.partial(evaluate_loss, settings=valid_settings)

    loaders = [
        # For all epochs, even where a stage resumes: its programs are then those of one that never stopped.
        make_loader(group_M, [update[number] for update in updates], stage.positions, objective, model, config.train)
        for number, (objective, *group_M) in enumerate(
            zip(stage.objectives, *(member.train for member in members), strict=True)
        )
    ]
    valid_batches, valid_loader, valid_M = [], None, [member.valid for member in members]
    if config.train.valid_every and valid_M[0] is not None:
        valid_batches = sequential_batches(len(valid_M[0].pairs), config.train.batch_size, len(members))
        valid_loader = make_loader(
            valid_M, valid_batches, stage.valid_positions, stage.valid_objective, model, config.train
        )
    interval = per_epoch if config.train.epochs else -(-config.train.updates // VALIDATIONS)
    return Job(
        stage,
        model,
        members,
        config,
        updates,
        per_epoch,
        interval,
        loaders,
        valid_batches,
        valid_loader,
        optimizer,
        folder,
        step,
        evaluate,
    )


def load_signals(job: Job, state: TrainState, folder: pathlib.Path) -> Job:
    """Computes the teachers' signals, and compiles the job's programs meanwhile.

    Args:
      folder: of signals that are cached on disk.
    """
    model, members = job.model, job.members
    updates = abstract_updates(job.loaders, job.updates)
    programs = [Program(job.step, (state, model.base, update, job.seeds_M)) for update in updates]
    if job.valid_loader:
        updates = abstract_updates([job.valid_loader], [[numbers] for numbers in job.valid_batches])
        programs += [Program(job.evaluate, (state.adapter, model.base, update)) for update in updates]
    teachers = [stack_adapters(own) for own in zip(*(member.teachers for member in members), strict=True)]
    for loader in job.loaders:
        print(loader.describe())
    known: dict[str, SignalSource] = {}

    def signalled(loader: GroupLoader, teachers_M: Adapter) -> GroupLoader:
        return with_signals(loader, teachers_M, job.stage.scale, job.config.train, folder, known)

    with compiling(programs, model.mesh):
        loaders = list(map(signalled, job.loaders, teachers))
        valid_loader = job.valid_loader and signalled(job.valid_loader, teachers[0])
    return dataclasses.replace(job, loaders=loaders, valid_loader=valid_loader)


def train(job: Job, reached: Progress, checkpoints: Checkpoints) -> Progress:
    """Takes the updates that are left; saves, and ends the command, where a signal asks for it."""
    steps, settings, metrics = len(job.updates), job.config.train, None
    if not reached.updates and job.valid_loader:
        reached = validate_start(job, reached)
    profile = Profile(job.members[0].log.path.parent / "profile", job.config.log.profile)
    upcoming = fetch_updates(job.loaders, job.updates[reached.updates :])
    with deferred_signals() as asked_to_stop, progress(steps, reached.updates, job.stage.name) as bar, profile:
        for done, fetched in enumerate(upcoming, start=reached.updates + 1):
            previous = metrics
            update = place_update(job.loaders, fetched)
            profile.before(done)
            state, metrics = job.step(reached.state, job.model.base, update, job.seeds_M)
            # The metrics of the step before: the device never waits for the log.
            show(bar, previous)
            reached, stop = reached._replace(state=state, updates=done), asked_to_stop()
            number, rest = divmod(done, job.interval)
            at_end, converged = rest == 0 or done == steps, False
            if at_end:
                reached = end_interval(job, reached, metrics, number)
                converged = has_converged(reached, settings)
            if stop or (at_end and is_due(settings.checkpoint_every, number, done == steps or converged)):
                save_progress(checkpoints, reached)
            if converged and done < steps:
                print(f"{job.stage.name}: the validation loss no longer falls; ended after {done} of {steps} updates")
                break
            if stop and done < steps:
                print(
                    f"told to end: {job.stage.name} is saved after update {done} of {steps}; "
                    "the same command goes on from there"
                )
                end_with(stop)
    return reached


def validate_start(job: Job, reached: Progress) -> Progress:
    """Validates the adapters before the first update.

    One that training does not improve is kept as it is. Where the length is in epochs, one of these is kept, and this
    validation, by which training at an automatic rate is judged, is not logged as if it were one.
    """
    losses = validate(job, reached.state.adapter)
    check_losses(job.place, losses, "before the first update: the model's own outputs are not finite (NaN or infinity)")
    reached = reached._replace(start_losses=losses)
    if job.config.train.epochs:
        return reached
    for member, loss in zip(job.members, losses, strict=True):
        member.log.write(job.stage.name, 0, {"valid_loss": loss, "epoch": 0})
    return reached._replace(best_losses=losses, fallen_to=losses)


def end_interval(job: Job, reached: Progress, metrics: dict[str, jax.Array], number: int) -> Progress:
    """Validates where it is time, keeps the best adapters, and writes the members' metrics.

    Args:
      number: of intervals done.
    """
    settings = job.config.train
    epochs = number if settings.epochs else round(reached.updates / job.per_epoch, 2)
    scalars_M = metrics_by_member(metrics, len(job.members))
    skipped_M, in_row_M = to_host((reached.state.skipped, reached.state.in_row))
    losses, last = [scalars["loss"] for scalars in scalars_M], reached.updates == len(job.updates)
    counts = check_skipped(job.place, skipped_M, in_row_M, losses, reached.updates, last)
    scalars_M = [{**scalars, **count} for scalars, count in zip(scalars_M, counts, strict=True)]
    if not job.valid_loader:
        reached = reached._replace(best=copy_adapters(reached.state.adapter))
    elif is_due(settings.valid_every, number, last):
        losses = validate(job, reached.state.adapter)
        check_losses(job.place, losses, f"after update {reached.updates}; {LOWER_RATE}")
        before = (reached.updates - 1) // job.interval * job.interval
        reached = keep_best(reached, losses, settings, before)
        for scalars, loss in zip(scalars_M, losses, strict=True):
            scalars["valid_loss"] = loss
    schedule = learning_rate_schedule(job.config.optimizer, len(job.updates))
    for member, scalars, skipped in zip(job.members, scalars_M, skipped_M, strict=True):
        # The optimizer counts the updates that were not skipped.
        rate = float(schedule(max(reached.updates - 1 - skipped, 0)))
        member.log.write(job.stage.name, reached.updates, {**scalars, "epoch": epochs, "learning_rate": rate})
    return reached


def validate(job: Job, adapters_M: Adapter) -> list[float]:
    """Computes each member's validation loss: of predictions and of aligned positions the mean over all its pairs."""
    loader, losses_M = job.valid_loader, np.zeros(len(job.members))
    # [batches, M, 2]; both means then do not depend on how the pairs are divided into batches.
    totals = np.array([loader.total_weights(numbers) for numbers in job.valid_batches])
    for numbers, shares_M2 in zip(job.valid_batches, totals / totals.sum(axis=0), strict=True):
        fetched = loader.fetch(numbers)
        fetched = fetched._replace(batch=with_shares(fetched.batch, shares_M2))
        losses_M += np.asarray(job.evaluate(adapters_M, job.model.base, place_update([loader], [fetched])))
    return losses_M.tolist()


def is_due(every: int, epoch: int, last: bool) -> bool:
    """Says whether something that happens in every so many epochs, and in the last one, happens now."""
    return bool(every) and (epoch % every == 0 or last)


def metrics_by_member(metrics: dict[str, jax.Array], members: int) -> list[dict[str, float]]:
    """Splits metrics [M] into each member's numbers."""
    host = to_host(metrics)
    return [{name: float(values[number]) for name, values in host.items()} for number in range(members)]
