"""Measures how far a system's predictions and hidden states are from a reference's."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.data.batches import Batch, Side, collate
from rdjax.data.pairs import Pair, Prompts
from rdjax.data.positions import LossPositions
from rdjax.data.prefix import shared_prefix
from rdjax.data.shapes import BatchShape, batch_shape, coarse, even_batches
from rdjax.distillation.forward import Signals, forward_side
from rdjax.distillation.losses import LossInputs, hidden_distance, kl_term
from rdjax.errors import UserError
from rdjax.evaluation.answers import EvalOptions, System, answer, answered_pairs
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, scaled_adapter
from rdjax.parallel.mesh import place_prefix, put, row_multiple, rows_sharding

# Nats a token. Below this the rule in context changes next to nothing, and there is nothing to distil.
GAP_NEAR_ZERO = 0.01

GAP_POSITIONS = LossPositions(variant="ours", hidden_positions="shared", reduction="token")


class Divergence(NamedTuple):
    """Says how far a system is from a reference.

    Attributes:
      kl: E KL(reference || system), nats per token.
      hidden_L: mean ||u_t - u_s||^2 of the normalised inputs of every block, over the shared positions.
    """

    kl: float
    hidden_L: list[float]


def gap_shapes(pairs: Mapping[Hashable, Sequence[Pair]], options: EvalOptions, rows: int) -> dict[Hashable, BatchShape]:
    """Returns the shape in which the pairs of each group are compared.

    Groups whose shared prefixes have the same lengths get the same shape, and all sizes are coarse, so that groups and
    the seeds of a sweep share programs.
    """
    prefixes = {split: shared_prefix(own, GAP_POSITIONS) for split, own in pairs.items()}
    lengths = {split: tuple(map(len, prefix)) for split, prefix in prefixes.items()}
    shapes = {}
    for split, prefix in prefixes.items():
        alike = [pairs[other] for other in pairs if lengths[other] == lengths[split]]
        batches = [batch for own in alike for batch in even_batches(own, options.batch_size)]
        if lengths[split] not in shapes:
            shapes[lengths[split]] = batch_shape(batches, rows, GAP_POSITIONS, prefix, coarse)
    return {split: shapes[lengths[split]] for split in pairs}


def divergence(
    model: LanguageModel,
    reference: System,
    systems: Mapping[str, System],
    pairs: Sequence[Pair],
    shape: BatchShape,
    options: EvalOptions,
) -> dict[str, Divergence]:
    """Measures how far each system is from the reference, teacher-forced on the reference's responses.

    Args:
      pairs: prompts with these responses.
      shape: from `gap_shapes`.

    Raises:
      UserError: the outputs of a system are not finite.
    """
    rows = row_multiple(model.mesh)
    prompts = pairs[0].prompts
    prefixes = {
        "teacher": place_prefix(prompts.teacher_ids, shape.teacher.prefix, model.mesh),
        "student": place_prefix(prompts.student_ids, shape.student.prefix, model.mesh),
    }
    kls, hidden = dict.fromkeys(systems, 0.0), {name: np.zeros(model.config.layers) for name in systems}
    # That of a system from itself is zero.
    others = {name: system for name, system in systems.items() if not _is_same(system, reference)}
    tokens = positions = 0.0

    def signals_of(system: System, batch: Batch) -> Signals:
        side = "teacher" if system.with_rule else "student"
        scaled = scaled_adapter(system.adapter, options.scale)
        return _forward(model.base, scaled, getattr(batch, side), prefixes[side], graph=model.graph)

    for part in even_batches(pairs, options.batch_size):
        batch = collate(part, rows, shape, GAP_POSITIONS, model.eos_ids[0])
        tokens += float(batch.weight_BP.sum())
        positions += float(batch.hidden_weight_BQ.sum())
        batch = put(batch, rows_sharding(model.mesh))
        expected = signals_of(reference, batch)
        for name, system in others.items():
            kl, hidden_L = _compare(model.base, expected, signals_of(system, batch), batch, graph=model.graph)
            kls[name] += float(kl)
            hidden[name] += np.asarray(hidden_L, np.float64)
    bad = next((name for name in systems if not np.isfinite(kls[name]) or not np.all(np.isfinite(hidden[name]))), None)
    if bad is not None:
        raise UserError(
            f"the model's outputs are not finite (NaN or infinity; system {bad}): its numbers are too large for "
            "config.model.dtype, or its weights are damaged"
        )
    return {name: Divergence(kls[name] / tokens, (hidden[name] / positions).tolist()) for name in systems}


def _is_same(system: System, other: System) -> bool:
    """Tells whether two systems are one."""
    return system.adapter is other.adapter and system.with_rule == other.with_rule


def row_divergences(
    model: LanguageModel,
    reference: System,
    system: System,
    pairs: Sequence[Pair],
    options: EvalOptions,
    on_pair: Callable[[], object] = lambda: None,
) -> list[float]:
    """Measures for each pair KL(reference || system) on the reference's response, nats per token.

    Args:
      on_pair: called behind every pair.
    """
    single = dataclasses.replace(options, batch_size=1)
    shape = gap_shapes({"pairs": pairs}, single, row_multiple(model.mesh))["pairs"]
    divergences = []
    for pair in pairs:
        divergences.append(divergence(model, reference, {"system": system}, [pair], shape, single)["system"].kl)
        on_pair()
    return divergences


@functools.partial(jax.jit, static_argnames=("graph",))
def _forward(
    base: dict[str, Any], adapter: Adapter, side: Side, prefix_C: jax.Array | None, *, graph: nnx.GraphDef
) -> Signals:
    """Runs one forward pass over one side of a batch."""
    return forward_side(graph, base, adapter, side, prefix_C=prefix_C)


@functools.partial(jax.jit, static_argnames=("graph",))
def _compare(
    base: dict[str, Any], reference: Signals, system: Signals, batch: Batch, *, graph: nnx.GraphDef
) -> tuple[jax.Array, jax.Array]:
    """Sums the KL divergence [] and the hidden distance of every layer [L] over the batch."""
    inputs = LossInputs(reference, system, batch, nnx.merge(graph, base).head(), temperature=1.0)
    distance_LBQ = hidden_distance(reference.inputs_LBQD, system.inputs_LBQD)
    return kl_term(inputs), jnp.sum(distance_LBQ * batch.hidden_weight_BQ, axis=(1, 2))


def gap_to_close(model: LanguageModel, start: Adapter, prompts: Sequence[Prompts], options: EvalOptions) -> float:
    """Measures E KL(base with rule || base), nats per token: what the rule in context changes, before any training."""
    reference = System(start, with_rule=True)
    pairs = answered_pairs(prompts, answer(model, reference, prompts, options))
    base = {"base": System(start, with_rule=False)}
    shape = gap_shapes({"gap": pairs}, options, row_multiple(model.mesh))["gap"]
    return divergence(model, reference, base, pairs, shape, options)["base"].kl
