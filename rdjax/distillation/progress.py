"""Holds what a stage has reached: keeps it in checkpoints, keeps the best adapters, and tells when a stage ends."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from rdjax.distillation.step import TrainState, init_state
from rdjax.errors import UserError
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import replicated
from rdjax.storage.checkpoint import Checkpoints

LEAST_FALL = 0.02  # a validation loss falls if it falls by this share of what it was before the first update


class Progress(NamedTuple):
    """Holds what a stage has reached; its checkpoints contain this. Arrays are stacked over members."""

    state: TrainState
    best: Adapter
    best_losses: list[float]
    start_losses: list[float]  # before the first update
    fallen_to: list[float]  # the validation loss when it last fell
    stale: list[int]  # validations of each member since then
    updates: int  # done
    data: str = ""  # a hash of the pairs


RECORDED = ("best_losses", "start_losses", "fallen_to", "stale", "updates", "data")  # in the record of a checkpoint


def initial_progress(
    adapters: Sequence[Adapter], optimizer: optax.GradientTransformation, mesh: Mesh, data: str = ""
) -> Progress:
    """Returns what members with these adapters, and pairs of this hash, start from, on the mesh."""
    initial_M, count = stack_adapters(adapters), len(adapters)
    state = jax.jit(init_state, static_argnums=1, out_shardings=replicated(mesh))(initial_M, optimizer)
    unknown = [math.inf] * count
    return Progress(state, copy_adapters(state.adapter), unknown, unknown, unknown, [0] * count, 0, data)


def restore_progress(checkpoints: Checkpoints, initial: Progress) -> Progress:
    """Returns the newest checkpoint of the stage that is whole, or the start.

    Raises:
      UserError: it is of other pairs.
    """
    found = checkpoints.restore_newest({"state": initial.state, "best": initial.best})
    if found is None:
        return initial
    saved, record = found.state, found.progress
    if record.get("data", initial.data) != initial.data:
        raise UserError(
            f"{checkpoints.folder}: checkpoints of a training on other pairs than those of now; delete this folder, "
            "and the same command trains again"
        )
    # Earlier versions did not validate before the first update, nor end before the last one.
    numbers = {name: record.get(name, getattr(initial, name)) for name in RECORDED}
    return Progress(saved["state"], saved["best"], **numbers)


def save_progress(checkpoints: Checkpoints, reached: Progress) -> None:
    """Writes a checkpoint."""
    record = {name: getattr(reached, name) for name in RECORDED}
    checkpoints.save(reached.updates, {"state": reached.state, "best": reached.best}, record)


def keep_best(reached: Progress, losses: Sequence[float], settings: config_dict.ConfigDict, before: int) -> Progress:
    """Keeps the adapters whose validation loss is the lowest so far, and counts the validations without progress.

    A member that would have ended alone, at the end of the interval before, keeps what it had then.

    Args:
      before: updates at that end.
    """
    ended = [is_stale(count, before, settings) for count in reached.stale]
    better = [new < old and not end for new, old, end in zip(losses, reached.best_losses, ended, strict=True)]
    columns = zip(losses, reached.fallen_to, reached.start_losses, strict=True)
    falls = [new < old - LEAST_FALL * start or math.isinf(old) for new, old, start in columns]
    return reached._replace(
        best=choose_adapters(better, reached.state.adapter, reached.best),
        # Not min(): a loss that is not a number is no better, and must not stay.
        best_losses=[new if up else old for new, old, up in zip(losses, reached.best_losses, better, strict=True)],
        fallen_to=[new if fell else old for new, old, fell in zip(losses, reached.fallen_to, falls, strict=True)],
        stale=[
            count if end else 0 if fell else count + 1
            for count, fell, end in zip(reached.stale, falls, ended, strict=True)
        ],
    )


def is_stale(count: int, updates: int, settings: config_dict.ConfigDict) -> bool:
    """Tells whether a member ends after `updates` updates, `count` validations after its loss has last fallen."""
    return not settings.epochs and 0 < settings.patience <= count and updates >= settings.min_updates


def has_converged(reached: Progress, settings: config_dict.ConfigDict) -> bool:
    """Tells whether no member's validation loss falls any more."""
    return all(is_stale(count, reached.updates, settings) for count in reached.stale)


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
