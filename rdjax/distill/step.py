"""The training step: a gradient for the adapter alone, over one shared base."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from rdjax.data.batches import Batch, Side
from rdjax.distill.losses import cross_entropy, hidden_distance, kl_divergence, soft_cross_entropy, sum_in_chunks
from rdjax.distill.teacher import Signals, read_prefix, read_side
from rdjax.models.decoder import Prefix, logits
from rdjax.models.lora import Adapter, scaled_adapter
from rdjax.parallel.mesh import replicated, rows_sharding

LOGIT_LOSSES = {"kl": kl_divergence, "entropy": soft_cross_entropy}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a stage minimises.

    Attributes:
      kind: "distill", "tune_without_rule" or "tune_with_rule" (cross-entropy on the response).
      logit: "kl", "entropy" or "none".
      temperature: T of the logit loss.
      hidden_weight: weight of mean_l ||u_t - u_s||^2.
    """

    kind: str
    logit: str = "kl"
    temperature: float = 1.0
    hidden_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Static settings of the step: the adapters' scale, the student's dropout, rematerialisation."""

    scale: float
    dropout: float
    remat: str


class TrainState(NamedTuple):
    """What training changes: the adapter, the optimizer's moments, and the count of updates done.

    Members (runs that train side by side over one base) are stacked along the first axis, M.
    """

    adapter: Adapter
    moments: Any
    step: jax.Array


def init_state(adapters_M: Adapter, optimizer: optax.GradientTransformation) -> TrainState:
    """The start of every member; its own copy, since steps donate their state."""

    def one(adapter: Adapter) -> TrainState:
        return TrainState(jax.tree.map(jnp.copy, adapter), optimizer.init(adapter), jnp.zeros((), jnp.int32))

    return jax.vmap(one)(adapters_M)


def batch_loss(
    adapter: Adapter,
    graph: nnx.GraphDef,
    base: dict[str, Any],
    batch: Batch,
    signals: Signals | None,
    prefix_C: jax.Array | None,
    objective: Objective,
    options: StepOptions,
    dropout_key: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a (micro-)batch and its parts; weights hold the reduction, so micro-batches add up.

    Args:
      signals: the teacher's; None when tuning on the response.
      prefix_C: tokens that the trained side leaves out of its sequences: read once a row, with a gradient as the rest.
      dropout_key: None switches the adapter's dropout off.
    """
    side = batch.teacher if objective.kind == "tune_with_rule" else batch.student
    drop = (options.dropout, dropout_key) if dropout_key is not None and options.dropout else None
    scaled = scaled_adapter(adapter, options.scale)
    student = read_side(graph, base, scaled, side, drop, options.remat, lead_C=prefix_C)
    head_DV = nnx.merge(graph, base).head()
    if objective.kind != "distill":
        held = batch.labels_BP, batch.weight_BP
        loss = sum_in_chunks(_tuning_loss, student.final_BPD, head_DV, held)
        return loss, {"cross_entropy": loss}
    parts = {}
    if objective.logit != "none":
        held = signals.final_BPD, batch.weight_BP
        parts["logit_loss"] = sum_in_chunks(
            logit_loss(objective.logit, objective.temperature), student.final_BPD, head_DV, held
        )
    if objective.hidden_weight:
        distance_BQ = jnp.mean(hidden_distance(signals.inputs_LBQD, student.inputs_LBQD), axis=0)
        parts["hidden_loss"] = objective.hidden_weight * jnp.sum(distance_BQ * batch.hidden_weight_BQ)
    return sum(parts.values(), jnp.zeros(())), parts


def _tuning_loss(student_BPD: jax.Array, head_DV: jax.Array, held: tuple[jax.Array, jax.Array]) -> jax.Array:
    labels_BP, weight_BP = held
    return jnp.sum(cross_entropy(logits(student_BPD, head_DV), labels_BP) * weight_BP)


@functools.cache
def logit_loss(name: str, temperature: float):
    """A loss between the teacher's and the student's logits for `sum_in_chunks`, which asks for the same function."""

    def loss(student_BPD: jax.Array, head_DV: jax.Array, held: tuple[jax.Array, jax.Array]) -> jax.Array:
        teacher_BPD, weight_BP = held
        both = logits(teacher_BPD, head_DV), logits(student_BPD, head_DV)
        return jnp.sum(LOGIT_LOSSES[name](*both, temperature) * weight_BP)

    return loss


@functools.partial(jax.jit, static_argnames=("graph", "scale"))
def teacher_prefixes(graph, base, adapters_M: Adapter, prefix_C: jax.Array, scale: float) -> Prefix:
    """What each member's teacher makes of the tokens that all prompts begin with, [M, L, C, K, H]."""
    return jax.vmap(lambda adapter: read_prefix(graph, base, scaled_adapter(adapter, scale), prefix_C))(adapters_M)


def signals_shardings(mesh: Mesh) -> Signals:
    """Of signals [M, A, L, B, Q, D] and [M, A, B, P, D], which lie as the batch's rows do."""
    return Signals(rows_sharding(mesh, leading=3), rows_sharding(mesh, leading=2))


@functools.partial(jax.jit, static_argnames=("graph", "scale"))
def teacher_signals(
    graph, base, adapters_M: Adapter | None, batch: Batch, prefix_M: Prefix | None, scale: float
) -> Signals:
    """What the teachers show for the micro-batches [M, A, B, ...] of an update, [M, A, ...]."""

    def one(adapter: Adapter | None, side: Side, prefix: Prefix | None) -> Signals:
        teacher = scaled_adapter(adapter, scale)
        return jax.lax.map(lambda micro: read_side(graph, base, teacher, micro, prefix=prefix), side)

    shown, mesh = jax.vmap(one)(adapters_M, batch.teacher, prefix_M), nnx.merge(graph, base).mesh
    return shown if mesh is None else jax.lax.with_sharding_constraint(shown, signals_shardings(mesh))


def loss_and_gradient(graph, base, adapter, batch: Batch, signals, prefix_C, objective, options, dropout_key):
    """((loss, parts), gradient of the adapter) of one update: micro-batches [A, B, ...] added up in turn."""

    @jax.jit  # traced once, though it is asked for its shapes first
    def micro(batch, signals):
        return jax.value_and_grad(batch_loss, has_aux=True)(
            adapter, graph, base, batch, signals, prefix_C, objective, options, dropout_key
        )

    def add(total, scanned):
        return jax.tree.map(jnp.add, total, micro(*scanned)), None

    scanned = (batch, signals)
    shapes = jax.eval_shape(micro, *jax.tree.map(lambda leaf: leaf[0], scanned))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zero, scanned)[0]


@functools.partial(jax.jit, static_argnames=("graph", "optimizer", "objective", "options"), donate_argnames=("state",))
def train_step(
    state: TrainState,
    base: dict[str, Any],
    batch: Batch,
    signals: Signals | None,
    prefix_C: jax.Array | None,
    seeds_M: jax.Array,
    *,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    options: StepOptions,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of every member's adapter, each on its own batch.

    Args:
      state: of M members; donated.
      base: the weights that all teachers and students share; never written.
      batch: micro-batches [M, A, B, ...].
      signals: `teacher_signals` of the same batch, or None when tuning on the response.
      prefix_C: tokens that the trained side of the batch leaves out, or None.
      seeds_M: of dropout; a member's masks follow from its seed and the step alone.
      graph, optimizer, objective, options: static.

    Returns:
      The new state, and for each member [M] the loss, its parts and the gradient's global norm.
    """

    def one(state: TrainState, batch: Batch, signals: Signals | None, seed: jax.Array):
        key = jax.random.fold_in(jax.random.key(seed), state.step) if options.dropout else None
        (loss, parts), gradient = loss_and_gradient(
            graph, base, state.adapter, batch, signals, prefix_C, objective, options, key
        )
        updates, moments = optimizer.update(gradient, state.moments, state.adapter)
        metrics = {"loss": loss, **parts, "gradient_norm": optax.tree.norm(gradient)}
        return TrainState(optax.apply_updates(state.adapter, updates), moments, state.step + 1), metrics

    made, metrics = jax.vmap(one)(state, batch, signals, seeds_M)
    mesh = nnx.merge(graph, base).mesh
    # As the state came in: whole on every device.
    return made if mesh is None else jax.lax.with_sharding_constraint(made, replicated(mesh)), metrics


@functools.partial(jax.jit, static_argnames=("graph", "objective", "options"))
def evaluate_loss(adapters_M, base, batch: Batch, signals, prefix_C, *, graph, objective, options) -> jax.Array:
    """The loss [M] of micro-batches [M, A, B, ...] without dropout."""

    def one(adapter, batch, signals):
        def micro(scanned):
            return batch_loss(adapter, graph, base, *scanned, prefix_C, objective, options, None)[0]

        return jnp.sum(jax.lax.map(micro, (batch, signals)))

    return jax.vmap(one)(adapters_M, batch, signals)
