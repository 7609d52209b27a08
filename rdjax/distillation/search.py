"""Trains a stage at a learning rate that follows from the model's width, and tries others where that one is wrong."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

from ml_collections import config_dict

from rdjax.distillation.finite import DivergedError
from rdjax.distillation.job import Member, Stage
from rdjax.distillation.optimizer import AUTO, rate_for_width, with_rate
from rdjax.distillation.stage import Trained, run_stage
from rdjax.errors import UserError
from rdjax.models.load import LanguageModel

TRIALS = (1 / 10, 1 / 3, 3.0)  # rates of the short trials, relative to the one that was wrong
TRIAL_SHARE = 4  # a trial has this part of a run's updates
LEAST_PROGRESS = 0.1  # a rate is wrong if the validation loss does not fall by this share


def train_stage(
    stage: Stage,
    model: LanguageModel,
    members: Sequence[Member],
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
) -> list[Trained]:
    """Trains the members at the config's learning rate; `auto` finds one.

    A member that `auto` fails goes on alone: its loss was not finite, or its validation loss did not fall.

    Args:
      config: the run's.
      folder: of checkpoints; those of the stage are in `<folder>/<stage.name>`.

    Raises:
      UserError: the loss is not finite at any of the rates.
    """
    if config.optimizer.learning_rate != AUTO:
        return run_stage(stage, model, members, config, folder / stage.name)
    rate = rate_for_width(model.config.width)
    print(f"{stage.name}: learning rate {rate:.2g}, by the model's width of {model.config.width}")
    try:
        results = run_stage(stage, model, members, with_rate(config, rate), folder / stage.name)
    except DivergedError as error:
        if len(members) > 1:
            raise
        return [retry(stage, model, members[0], config, folder, rate, None, str(error))]
    reason = "the validation loss did not fall"
    for number, (member, result) in enumerate(zip(members, results, strict=True)):
        if not has_learnt(result):
            alone = stage if len(members) == 1 else dataclasses.replace(stage, name=f"{stage.name}_member{number}")
            results[number] = retry(alone, model, member, config, folder, rate, result, reason)
    return results


def has_learnt(result: Trained) -> bool:
    """Tells whether training has lowered the validation loss; unknown without validations, and then true."""
    return math.isinf(result.start_loss) or result.valid_loss < result.start_loss * (1 - LEAST_PROGRESS)


def retry(
    stage: Stage,
    model: LanguageModel,
    member: Member,
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
    rate: float,
    result: Trained | None,
    reason: str,
) -> Trained:
    """Tries other rates for a few updates each, and trains at the best of them.

    Args:
      rate: the one that was wrong.
      result: what it led to, unless the loss was not finite; it stays if no other is better.
      reason: for the log.
    """
    rates = [rate * factor for factor in TRIALS]
    listed = ", ".join(f"{other:.2g}" for other in rates)
    print(f"{stage.name}: {reason}; trying the rates {listed}")
    short = with_rate(config, rate)
    length = "epochs" if short.train.epochs else "updates"
    short.train[length] = max(short.train[length] // TRIAL_SHARE, 1)
    losses = {}
    for other in rates:
        trial = dataclasses.replace(stage, name=f"{stage.name}_trial_{other:.1e}")
        try:
            (tried,) = run_stage(trial, model, [member], with_rate(short, other), folder / trial.name)
        except DivergedError:
            continue
        losses[other] = tried.valid_loss
    if not losses:
        raise UserError(f"{stage.name}: {reason}; so at the rates {listed}; set config.optimizer.learning_rate by hand")
    best = min(losses, key=lambda other: (losses[other], other))  # without validations the lowest that stays finite
    start = math.inf if result is None else result.start_loss
    if not has_learnt(Trained(member.initial, losses[best], start, best)):
        print(f"{stage.name}: no rate lowers the validation loss")
        return result
    print(f"{stage.name}: training at {best:.2g}")
    again = dataclasses.replace(stage, name=f"{stage.name}_at_{best:.1e}")
    try:
        (found,) = run_stage(again, model, [member], with_rate(config, best), folder / again.name)
    except DivergedError:
        if result is None:
            raise
        print(f"{again.name}: the loss is not finite after all; what was learnt before is kept")
    else:
        if result is None or found.valid_loss < result.valid_loss:
            return found
    member.log.truncate(again.name, -1)  # the report shows the last stage of the student
    return result
