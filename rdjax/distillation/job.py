"""Prepares one stage: what it trains and how, the pairs of every update, and the programs.

Members are runs that differ in their seed, or in the rule that they learn: in their data, its order, their adapter and
its dropout. They train side by side over one copy of the base, and each gets what it would get alone.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np
import optax
from ml_collections import config_dict

from rdjax.data.groups import PairGroup
from rdjax.data.positions import LossPositions
from rdjax.distillation.finite import StageLabel
from rdjax.distillation.objective import Objective
from rdjax.distillation.optimizer import make_optimizer
from rdjax.distillation.programs import Program, compiling
from rdjax.distillation.progress import stack_adapters
from rdjax.distillation.signals import PairNumbers, SignalSource
from rdjax.distillation.step import StepSettings, TrainState, evaluate_loss, train_step
from rdjax.distillation.updates import (
    GroupLoader,
    UpdateNumbers,
    abstract_updates,
    make_loader,
    plan_epoch,
    sequential_batches,
    with_signals,
)
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.storage.metrics import MetricsLog

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
    def label(self) -> StageLabel:
        """Returns what messages about the stage's numbers name."""
        return StageLabel(self.stage.name, [member.seed for member in self.members], self.folder)


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
