"""Runs one stage: trains the adapters of its members, validates them, keeps the best, and resumes where it stopped."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

from rdjax.data.batches import with_shares
from rdjax.distillation.finite import LOWER_RATE, check_losses, check_skipped
from rdjax.distillation.job import Job, Member, Stage, load_signals, make_job
from rdjax.distillation.optimizer import learning_rate_schedule
from rdjax.distillation.profile import Profile
from rdjax.distillation.progress import (
    Progress,
    copy_adapters,
    has_converged,
    initial_progress,
    keep_best,
    restore_progress,
    save_progress,
    take_member,
)
from rdjax.distillation.updates import fetch_updates, put_update
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.processes import deferred_signals, end_with, to_host
from rdjax.storage.checkpoint import Checkpoints
from rdjax.storage.metrics import advance, progress_bar


class Trained(NamedTuple):
    """Holds the result of a member: its adapter, its validation loss now and before the first update, and its rate.

    The losses are infinite where there were no validations.
    """

    adapter: Adapter
    valid_loss: float
    start_loss: float
    rate: float


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


def train(job: Job, reached: Progress, checkpoints: Checkpoints) -> Progress:
    """Takes the updates that are left; saves, and ends the command, where a signal asks for it."""
    steps, settings, metrics = len(job.updates), job.config.train, None
    if not reached.updates and job.valid_loader:
        reached = validate_start(job, reached)
    profile = Profile(job.members[0].log.path.parent / "profile", job.config.log.profile)
    upcoming = fetch_updates(job.loaders, job.updates[reached.updates :])
    with deferred_signals() as asked_to_stop, progress_bar(steps, reached.updates, job.stage.name) as bar, profile:
        for done, fetched in enumerate(upcoming, start=reached.updates + 1):
            previous = metrics
            update = put_update(job.loaders, fetched)
            profile.before(done)
            state, metrics = job.step(reached.state, job.model.base, update, job.seeds_M)
            # The metrics of the step before: the device never waits for the log.
            advance(bar, previous)
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
    check_losses(job.label, losses, "before the first update: the model's own outputs are not finite (NaN or infinity)")
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
    counts = check_skipped(job.label, skipped_M, in_row_M, losses, reached.updates, last)
    scalars_M = [{**scalars, **count} for scalars, count in zip(scalars_M, counts, strict=True)]
    if not job.valid_loader:
        reached = reached._replace(best=copy_adapters(reached.state.adapter))
    elif is_due(settings.valid_every, number, last):
        losses = validate(job, reached.state.adapter)
        check_losses(job.label, losses, f"after update {reached.updates}; {LOWER_RATE}")
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
        losses_M += np.asarray(job.evaluate(adapters_M, job.model.base, put_update([loader], [fetched])))
    return losses_M.tolist()


def is_due(every: int, epoch: int, last: bool) -> bool:
    """Says whether something that happens in every so many epochs, and in the last one, happens now."""
    return bool(every) and (epoch % every == 0 or last)


def metrics_by_member(metrics: dict[str, jax.Array], members: int) -> list[dict[str, float]]:
    """Splits metrics [M] into each member's numbers."""
    host = to_host(metrics)
    return [{name: float(values[number]) for name, values in host.items()} for number in range(members)]
