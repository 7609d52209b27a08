"""Describes the stages of a run: what each teaches, from which pairs and teachers, and trains them."""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import jax
from ml_collections import config_dict

from rdjax.config import METHODS
from rdjax.data.groups import PairGroup, make_group
from rdjax.data.pairs import keep_rule
from rdjax.data.positions import LossPositions
from rdjax.distillation.job import Member, Stage
from rdjax.distillation.objective import (
    TUNE_WITH_RULE,
    TUNE_WITHOUT_RULE,
    Objective,
    distillation_objective,
    retain_objective,
)
from rdjax.distillation.search import train_stage
from rdjax.distillation.stage import Trained
from rdjax.models.lora import Adapter, LoraSpec
from rdjax.run.experiment import Run

# Of instruction tuning and of validation on gold outputs, whatever the variant of distillation.
GOLD_POSITIONS = LossPositions("ours", "response", "token")
TUNING = {"inst_tune_without_rule": TUNE_WITHOUT_RULE, "inst_tune_with_rule": TUNE_WITH_RULE}
ENHANCED = "enhanced_teacher"
# The student reads the rule there, which takes its time; a few pairs an update are enough (docs/study_defaults.md).
CONSISTENCY_SHARE = 0.25


def make_stage(
    config: config_dict.ConfigDict, spec: LoraSpec, width: int, name: str, method: str, valid_is_gold: bool
) -> Stage:
    """Describes the stage that trains one adapter by one method, on the task's own pairs alone.

    Args:
      width: of the model, D.
      valid_is_gold: whether the validation pairs have gold outputs, on which the loss is then cross-entropy.
    """
    loss = config.loss
    reduction = "sample" if loss.variant == "published" else loss.reduction
    objective = TUNING.get(method) or distillation_objective(loss, width)
    positions = GOLD_POSITIONS
    if objective.has_teacher:
        positions = LossPositions(loss.variant, loss.hidden_positions, reduction)
    valid = objective, positions
    if objective.has_teacher and valid_is_gold:
        valid = TUNE_WITHOUT_RULE, GOLD_POSITIONS
    return Stage(name, (objective,), positions, *valid, spec.scale, spec.dropout, config.model.remat)


def train_adapters(
    runs: Sequence[Run], name: str, method: str, teachers: Sequence[Adapter], folder: pathlib.Path
) -> list[Trained]:
    """Trains one adapter of every run, side by side.

    Args:
      teachers: the frozen adapter of each run's teacher.
      folder: of checkpoints; those of this stage are in `<folder>/<name>`.
    """
    stage, members = stage_of(runs, name, method, teachers)
    return train_stage(stage, runs[0].model, members, runs[0].config, folder)


def delete_signals(folder: pathlib.Path) -> None:
    """Deletes what this process has cached on disk for stages that are trained.

    Args:
      folder: of checkpoints, as of `train_adapters`.
    """
    for path in (folder / "signals").glob(f"*/process-{jax.process_index()}"):
        shutil.rmtree(path, ignore_errors=True)


def stage_of(runs: Sequence[Run], name: str, method: str, teachers: Sequence[Adapter]) -> tuple[Stage, list[Member]]:
    """Describes the stage that trains one adapter of every run, and its members; arguments as `train_adapters`."""
    first = runs[0]
    stage = make_stage(first.config, first.spec, first.model.config.width, name, method, first.valid_is_gold)
    groups_M = [stage_groups(run, stage, teacher) for run, teacher in zip(runs, teachers, strict=True)]
    members = [
        Member(
            run.config.seed,
            run.start if name in (ENHANCED, *METHODS) else run.initial,
            [group.teacher for group in groups],
            [group.pair_group for group in groups],
            make_group(run.valid, stage.valid_positions) if run.valid else None,
            run.log,
        )
        for run, groups in zip(runs, groups_M, strict=True)
    ]
    return dataclasses.replace(stage, objectives=tuple(group.objective for group in groups_M[0])), members


class StageGroup(NamedTuple):
    """Holds a group of pairs of a stage, what is minimised of it, and its teacher's frozen adapter."""

    pair_group: PairGroup
    objective: Objective
    teacher: Adapter


def stage_groups(run: Run, stage: Stage, teacher: Adapter) -> list[StageGroup]:
    """Returns a stage's groups: the task's own pairs and, where there is a teacher, what is trained beside them.

    Inputs that the rule is not about, and those that do not meet its condition, have what the run starts from as their
    teacher. Where the rule stands in the student's prompt as well, the student is to answer as its teacher does (arXiv
    2606.11627); not where the teacher reads no rule either, which is to be unlearnt.
    """
    loss, positions, objective = run.config.loss, stage.positions, stage.objective
    groups = [StageGroup(make_group(run.train, positions), objective, teacher)]
    if objective.has_teacher:
        off_rule = retain_objective(loss, run.model.config.width)
        for pairs in run.retained.values():
            groups.append(StageGroup(make_group(pairs, positions, loss.retain_weight), off_rule, run.start))
    if objective.has_teacher and loss.consistency_weight and not run.config.task.remove_rule:
        with_rule = [keep_rule(pair) for pair in run.train]
        consistency = make_group(with_rule, positions, loss.consistency_weight, CONSISTENCY_SHARE)
        groups.append(StageGroup(consistency, objective, teacher))
    return groups
