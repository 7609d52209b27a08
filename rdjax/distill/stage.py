"""One stage: trains the adapters of one or more members, validates, keeps the best, and resumes where it stopped.

Members are runs that differ in their seed, and so in their data, its order, their adapter and its dropout. They
train side by side over one copy of the base; each gets what it would get alone.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from rdjax.data.batches import epoch_order, steps_per_epoch
from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions
from rdjax.data.shapes import in_batches
from rdjax.distill.optimizer import learning_rate_schedule, make_optimizer
from rdjax.distill.signals import Numbers
from rdjax.distill.step import Objective, StepOptions, TrainState, evaluate_loss, init_state, train_step
from rdjax.distill.updates import Updates, in_turn
from rdjax.errors import UserError
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import device_of, replicated
from rdjax.parallel.processes import EXIT_RERUN, deferred_sigterm, to_host
from rdjax.storage.checkpoint import Checkpoints
from rdjax.storage.metrics import MetricsLog, progress, show

COMPILED_AT_ONCE = 2  # programs: a large one takes the host's memory, too


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
    slots: LossPositions
    valid_slots: LossPositions


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
    """Where a stage stands between two updates; what its checkpoints hold. Arrays are stacked over members."""

    state: TrainState
    best: Adapter
    best_losses: list[float]
    updates: int  # done


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
    per_epoch = steps_per_epoch(len(members[0].train), config.train.batch_size)
    steps = per_epoch * config.train.epochs
    optimizer = make_optimizer(config.optimizer, steps)
    schedule = learning_rate_schedule(config.optimizer, steps)
    teachers_M = _stack([member.teacher for member in members])
    seeds_M = np.array([member.seed for member in members], np.uint32)
    initial_M = _stack([member.initial for member in members])
    state = jax.jit(init_state, static_argnums=1, out_shardings=replicated(model.mesh))(initial_M, optimizer)
    checkpoints = Checkpoints(folder)
    now = _restore(checkpoints, Standing(state, _copy(state.adapter), [float("inf")] * len(members), 0))
    for member in members:
        member.log.truncate(stage.name, now.updates)
    if now.updates == steps:
        return _finish(checkpoints, now)
    updates = _updates_of_epochs(members, config.train)
    make = functools.partial(Updates.make, model=model, train=config.train)
    # For all epochs, also where a run goes on: its programs are then those of a run that never stopped.
    train = make([member.train for member in members], updates, stage.slots, stage.objective)
    step = functools.partial(
        train_step, graph=model.graph, optimizer=optimizer, objective=stage.objective, options=stage.options
    )
    programs = [
        (step, (now.state, model.base, *like, train.trained_prefix_C, seeds_M)) for like in train.abstract_updates()
    ]
    validates = members[0].valid and config.train.valid_every
    if validates:
        in_order = in_turn(len(members[0].valid), config.train.batch_size, len(members))
        valid = make([member.valid for member in members], in_order, stage.valid_slots, stage.valid_objective)
        check = functools.partial(
            evaluate_loss, graph=model.graph, objective=stage.valid_objective, options=stage.options
        )
        programs += [
            (check, (now.state.adapter, model.base, *like, valid.trained_prefix_C)) for like in valid.abstract_updates()
        ]
    print(train.describe())
    with _compiling(programs, model):
        asked = teachers_M, stage.options.scale, config.train, folder.parent / "signals"
        train = train.with_signals(*asked)
        if validates:
            valid = valid.with_signals(*asked)
    prefix_C = train.trained_prefix_C
    upcoming = _ahead(map(train.fetch, updates[now.updates :]))

    def save() -> None:
        record = {"updates": now.updates, "best_losses": now.best_losses}
        checkpoints.save(now.updates, {"state": now.state, "best": now.best}, record)

    metrics = None
    with deferred_sigterm() as told_to_end, progress(steps, now.updates, stage.name) as bar:
        for done, fetched in enumerate(upcoming, start=now.updates + 1):
            before, (state, metrics) = metrics, step(now.state, model.base, *train.place(fetched), prefix_C, seeds_M)
            # The metrics of the step before: the device never waits for the log.
            show(bar, before)
            now, end = now._replace(state=state, updates=done), told_to_end()
            if done % per_epoch:
                if end:
                    save()
                    _end(stage, done, steps)
                continue
            epoch, last = done // per_epoch, done == steps
            scalars = _by_member(metrics, members)
            _check_finite(stage, members, scalars, epoch)
            best, best_losses = now.best, now.best_losses
            if not validates:
                best = _copy(state.adapter)
            elif _due(config.train.valid_every, epoch, last):
                losses = _validate(check, model, valid, in_order, state.adapter)
                better = [new < old for new, old in zip(losses, best_losses, strict=True)]
                best = _choose(better, state.adapter, best)
                # Not min(): a loss that is not a number is no better, and must not stay.
                best_losses = [new if new < old else old for new, old in zip(losses, best_losses, strict=True)]
                for mine, loss in zip(scalars, losses, strict=True):
                    mine["valid_loss"] = loss
            now = now._replace(best=best, best_losses=best_losses)
            for member, mine in zip(members, scalars, strict=True):
                rate = float(schedule(done - 1))
                member.log.write(stage.name, done, {**mine, "epoch": epoch, "learning_rate": rate})
            if end or _due(config.train.checkpoint_every, epoch, last):
                save()
            if end and not last:
                _end(stage, done, steps)
    return _finish(checkpoints, now)


@contextlib.contextmanager
def _compiling(programs: Sequence[tuple[functools.partial, tuple]], model: LanguageModel) -> Iterator[None]:
    """Compiles in threads while something else is done; at the end they are ready, and calls find them by their shapes.

    Args:
      programs: (a jitted function with its static arguments, its other ones, as arrays or as shapes).
    """
    if device_of(model.mesh).platform == "gpu":
        yield  # its compiler times kernels, and nothing must disturb that: the first calls compile
        return

    def compile_one(program: functools.partial, given: tuple) -> None:
        program.func.lower(*given, **program.keywords).compile()

    pool = ThreadPoolExecutor(COMPILED_AT_ONCE)
    try:
        compiled = [pool.submit(compile_one, *each) for each in programs]
        yield
        for each in compiled:
            each.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an error is told at once


def _end(stage: Stage, done: int, steps: int) -> None:
    """Ends the command after a SIGTERM; all is saved."""
    print(f"told to end: {stage.name} is saved after update {done} of {steps}; the same command goes on from there")
    sys.exit(EXIT_RERUN)


def _updates_of_epochs(members: Sequence[Member], train: config_dict.ConfigDict) -> list[Numbers]:
    """The numbers of each member's pairs in every update."""
    made = []
    for epoch in range(1, train.epochs + 1):
        orders = [epoch_order(len(member.train), member.seed, epoch) for member in members]
        made += map(list, zip(*(in_batches(order, train.batch_size) for order in orders), strict=True))
    return made


def _ahead(made: Iterator[Any]) -> Iterator[Any]:
    """The same things, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, made, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, made, None)
            yield item


def _by_member(metrics: dict[str, jax.Array], members: Sequence[Member]) -> list[dict[str, float]]:
    """Metrics [M] as each member's own numbers."""
    host = to_host(metrics)
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
    first_M = np.array(first)

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
    return Standing(saved["state"], saved["best"], record["best_losses"], record["updates"])


def _validate(
    check: Callable[..., jax.Array],
    model: LanguageModel,
    valid: Updates,
    updates: Sequence[Numbers],
    adapters_M: Adapter,
) -> list[float]:
    """Each member's mean validation loss over all slots of its validation pairs. `check`: `evaluate_loss`."""
    totals, slots = np.zeros((2, len(valid.pairs)))
    for numbers in updates:
        fetched = valid.fetch(numbers)
        losses_M = check(adapters_M, model.base, *valid.place(fetched), valid.trained_prefix_C)
        totals, slots = totals + np.asarray(losses_M) * fetched.weights, slots + fetched.weights
    return (totals / slots).tolist()
