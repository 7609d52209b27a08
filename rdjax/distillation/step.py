"""Takes a training step: the gradient of the adapter alone, over one shared base."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rdjax.data.batches import Batch
from rdjax.distillation.forward import Signals, forward_side
from rdjax.distillation.losses import LossInputs
from rdjax.distillation.objective import Objective
from rdjax.models.lora import Adapter, scaled_adapter
from rdjax.parallel.mesh import replicated


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Holds what a step is compiled for; equal settings share a program.

    Attributes:
      graph: the decoder's graph definition.
      objectives: what is minimised, of each group of pairs; all have terms of the same names.
      scale: of the adapter, alpha / rank.
      dropout: the rate of dropout on the adapter's inputs.
      remat: what the backward pass recomputes (`Decoder.__call__`).
    """

    graph: nnx.GraphDef
    objectives: tuple[Objective, ...]
    scale: float
    dropout: float = 0.0
    remat: str = "none"


class GroupUpdate(NamedTuple):
    """Holds one group's share of an update.

    Attributes:
      batch: micro-batches [M, A, B, ...].
      signals: the teachers', [M, A, ...]; None where the objective has no teacher.
      prefix_MC: tokens that the trained side of the batch leaves out, or None.
    """

    batch: Batch
    signals: Signals | None
    prefix_MC: jax.Array | None


Update = tuple[GroupUpdate, ...]


class TrainState(NamedTuple):
    """Holds what training changes, each with the members along the first axis M.

    Members are runs that train side by side over one base.
    """

    adapter: Adapter
    moments: Any  # the optimizer's state
    step: jax.Array  # updates done, with those that were skipped
    skipped: jax.Array  # updates that were not made, because they were not finite
    in_row: jax.Array  # of these, those since the last update that was made


def init_state(adapters_M: Adapter, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first update; it copies the adapters, because steps donate their state."""

    def one(adapter: Adapter) -> TrainState:
        counts = (jnp.zeros((), jnp.int32) for _ in range(3))
        return TrainState(jax.tree.map(jnp.copy, adapter), optimizer.init(adapter), *counts)

    return jax.vmap(one)(adapters_M)


def batch_loss(
    adapter: Adapter,
    base: dict[str, Any],
    group: GroupUpdate,
    key: jax.Array | None,
    settings: StepSettings,
    objective: Objective,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss of one micro-batch and its terms; the weights hold the reduction, so micro-batches add up.

    Args:
      group: of one member and one micro-batch: the leading axes M and A are gone.
      key: of dropout; None switches it off.
      objective: of the group.
    """
    scaled = scaled_adapter(adapter, settings.scale)
    side = getattr(group.batch, objective.trained)
    dropout = None if key is None or not settings.dropout else (settings.dropout, key)
    student = forward_side(settings.graph, base, scaled, side, dropout, settings.remat, prefix_C=group.prefix_MC)
    head = nnx.merge(settings.graph, base).head()
    inputs = LossInputs(
        *(group.signals, student, group.batch, head),
        *(objective.temperature, objective.top_k, objective.hidden_layers),
    )
    terms = {term.name: term.weight * term.function(inputs) for term in objective.terms}
    return sum(terms.values()), terms


def loss_and_gradient(
    adapter: Adapter, base: dict[str, Any], update: Update, key: jax.Array | None, settings: StepSettings
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Adapter]:
    """Computes ((loss, terms), gradient) of one member's update: the sum over groups and micro-batches.

    Args:
      update: without the leading axis M.
    """
    gradient_of = jax.value_and_grad(batch_loss, has_aux=True)
    zero_terms = {term.name: jnp.zeros(()) for term in settings.objectives[0].terms}
    total = (jnp.zeros(()), zero_terms), jax.tree.map(jnp.zeros_like, adapter)
    for number, group in enumerate(update):
        objective = settings.objectives[number]
        # Every group draws dropout masks of its own.
        group_key = key if key is None or number == 0 else jax.random.fold_in(key, number)

        def add_micro(total, micro, group=group, group_key=group_key, objective=objective):
            batch, signals = micro
            group = group._replace(batch=batch, signals=signals)
            return jax.tree.map(jnp.add, total, gradient_of(adapter, base, group, group_key, settings, objective)), None

        total, _ = jax.lax.scan(add_micro, total, (group.batch, group.signals))
    return total


@functools.partial(jax.jit, static_argnames=("settings", "optimizer"), donate_argnames=("state",))
def train_step(
    state: TrainState,
    base: dict[str, Any],
    update: Update,
    seeds_M: jax.Array,
    *,
    settings: StepSettings,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Updates every member's adapter, each on its own batches.

    An update is skipped where the loss, the gradient or the new adapter is not finite, so that the state always is.

    Args:
      state: of M members; donated.
      base: the weights that all teachers and students share; never written.
      update: each group's share.
      seeds_M: of dropout; a member's masks follow from its seed and the step alone.
      settings, optimizer: static.

    Returns:
      The new state, and for each member [M] the loss, its terms and the gradient's global norm.
    """

    def one(state: TrainState, update: Update, seed: jax.Array):
        key = jax.random.fold_in(jax.random.key(seed), state.step) if settings.dropout else None
        (loss, terms), gradient = loss_and_gradient(state.adapter, base, update, key, settings)
        metrics = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(gradient)}
        changes, moments = optimizer.update(gradient, state.moments, state.adapter)
        adapter = optax.apply_updates(state.adapter, changes)
        finite = jnp.isfinite(loss + metrics["gradient_norm"] + optax.tree.norm(adapter))
        done, none = state.step + 1, jnp.zeros_like(state.in_row)
        made = TrainState(adapter, moments, done, state.skipped, none)
        left = state._replace(step=done, skipped=state.skipped + 1, in_row=state.in_row + 1)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), made, left), metrics

    new_state, metrics = jax.vmap(one)(state, update, seeds_M)
    mesh = nnx.merge(settings.graph, base).mesh
    # Replicated, as the state came in.
    return new_state if mesh is None else jax.lax.with_sharding_constraint(new_state, replicated(mesh)), metrics


@functools.partial(jax.jit, static_argnames=("settings",))
def evaluate_loss(adapters_M: Adapter, base: dict[str, Any], update: Update, *, settings: StepSettings) -> jax.Array:
    """Computes the loss [M] of an update without dropout."""

    def one(adapter: Adapter, update: Update) -> jax.Array:
        def micro_loss(group: GroupUpdate, objective: Objective, micro: tuple[Batch, Signals | None]) -> jax.Array:
            batch, signals = micro
            return batch_loss(adapter, base, group._replace(batch=batch, signals=signals), None, settings, objective)[0]

        losses = [
            jnp.sum(
                jax.lax.map(
                    functools.partial(micro_loss, group, settings.objectives[number]), (group.batch, group.signals)
                )
            )
            for number, group in enumerate(update)
        ]
        return sum(losses)

    return jax.vmap(one)(adapters_M, update)
