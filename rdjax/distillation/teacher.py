"""Computes what the teachers give to the losses: the frozen base, with an adapter or none, reading the rule."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from rdjax.data.batches import Batch, Side
from rdjax.distillation.forward import Signals, forward_side, signals_shardings
from rdjax.models.decoder import Prefix
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, scaled_adapter

ComputeSignals = Callable[[Batch], Signals]


@functools.partial(jax.jit, static_argnames=("graph", "scale"))
def teacher_prefixes(
    graph: nnx.GraphDef, base: dict[str, Any], adapters_M: Adapter | None, prefix_MC: jax.Array, scale: float
) -> Prefix:
    """Computes the keys and values of each member's shared prefix, [M, L, K, C, H].

    Args:
      adapters_M: the teachers' adapters, stacked over members; None: the base alone.
      prefix_MC: the tokens that each member's teacher prompts begin with.
      scale: of the adapters.
    """

    def one(adapter: Adapter | None, prefix_C: jax.Array) -> Prefix:
        return nnx.merge(graph, base).read_prefix(prefix_C, scaled_adapter(adapter, scale))

    return jax.vmap(one)(adapters_M, prefix_MC)


@functools.partial(jax.jit, static_argnames=("graph", "scale"))
def teacher_signals(
    graph: nnx.GraphDef,
    base: dict[str, Any],
    adapters_M: Adapter | None,
    batch: Batch,
    prefix_M: Prefix | None,
    scale: float,
) -> Signals:
    """Computes the teachers' signals [M, A, ...] for the micro-batches [M, A, B, ...] of a batch.

    Args:
      prefix_M: from `teacher_prefixes`, where the batch leaves a prefix out.
    """

    def one(adapter: Adapter | None, side: Side, prefix: Prefix | None) -> Signals:
        scaled = scaled_adapter(adapter, scale)
        return jax.lax.map(lambda micro: forward_side(graph, base, scaled, micro, prefix=prefix), side)

    signals, mesh = jax.vmap(one)(adapters_M, batch.teacher, prefix_M), nnx.merge(graph, base).mesh
    return signals if mesh is None else jax.lax.with_sharding_constraint(signals, signals_shardings(mesh))


def make_teacher(
    model: LanguageModel, adapters_M: Adapter | None, scale: float, prefix_MC: jax.Array | None
) -> ComputeSignals:
    """Returns a function that computes the teachers' signals of a batch; the prefix is read here, once."""
    prefix_M = None
    if prefix_MC is not None:
        prefix_M = teacher_prefixes(model.graph, model.base, adapters_M, prefix_MC, scale)
    return lambda batch: teacher_signals(model.graph, model.base, adapters_M, batch, prefix_M, scale)
