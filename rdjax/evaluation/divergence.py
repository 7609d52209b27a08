"""Measures how far a system's predictions and hidden states are from a reference's."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.data.batches import Batch, Side, collate
from rdjax.data.pairs import Pair, Prompts
from rdjax.data.positions import LossPositions
from rdjax.data.prefix import pair_prefixes
from rdjax.data.shapes import Shape, batch_shape, coarsened, in_batches
from rdjax.distill.losses import hidden_distance, sum_in_chunks
from rdjax.distill.step import logit_loss
from rdjax.distill.teacher import Signals, read_side
from rdjax.evaluation.answers import EvalOptions, System, answer, answered_pairs
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, scaled_adapter
from rdjax.parallel.mesh import place_prefix, put, row_multiple, rows_sharding

# Nats a token. Below this the rule in context changes next to nothing and there is nothing to distil.
GAP_NEAR_ZERO = 0.01


GAP_SLOTS = LossPositions(variant="ours", hidden_positions="shared", reduction="token")


class Divergence(NamedTuple):
    """How far a system is from a reference.

    Attributes:
      kl: E KL(reference || system), nats a token.
      hidden_L: mean ||u_t - u_s||^2 of the normalised inputs of every block, over the shared positions.
    """

    kl: float
    hidden_L: list[float]


@functools.partial(jax.jit, static_argnames=("graph",))
def _read(base, adapter: Adapter, side: Side, prefix_C: jax.Array | None, *, graph) -> Signals:
    return read_side(graph, base, adapter, side, lead_C=prefix_C)


@functools.partial(jax.jit, static_argnames=("graph",))
def _compare(base, reference: Signals, system: Signals, batch: Batch, *, graph) -> tuple[jax.Array, jax.Array]:
    """Sums over the batch: of the KL divergence [], and of the hidden distance of every layer [L]."""
    head_DV = nnx.merge(graph, base).head()
    kl = sum_in_chunks(logit_loss("kl", 1.0), system.final_BPD, head_DV, (reference.final_BPD, batch.weight_BP))
    distance_LBQ = hidden_distance(reference.inputs_LBQD, system.inputs_LBQD)
    return kl, jnp.sum(distance_LBQ * batch.hidden_weight_BQ, axis=(1, 2))


def gap_shapes(groups: Mapping[str, Sequence[Pair]], options: EvalOptions, rows: int) -> dict[str, Shape]:
    """The shape in which each group of pairs is compared; groups with prefixes of the same lengths share it.

    Shapes are coarse, so that the seeds of a sweep share programs.
    """
    prefixes = {name: pair_prefixes(pairs, GAP_SLOTS) for name, pairs in groups.items()}
    shapes = {}
    for prefix in set(prefixes.values()):
        batches = [
            batch
            for name, pairs in groups.items()
            if prefixes[name] == prefix
            for batch in in_batches(pairs, options.batch_size)
        ]
        shapes[prefix] = coarsened(batch_shape(batches, rows, GAP_SLOTS, prefix))
    return {name: shapes[prefix] for name, prefix in prefixes.items()}


def divergence(
    model: LanguageModel,
    reference: System,
    systems: Mapping[str, System],
    pairs: Sequence[Pair],
    shape: Shape,
    options: EvalOptions,
) -> dict[str, Divergence]:
    """How far each system is from the reference, teacher-forced on the reference's responses.

    Args:
      pairs: prompts with these responses.
      shape: of `gap_shapes`.
    """
    rows = row_multiple(model.mesh)
    first = pairs[0].prompts
    sides = (first.student_ids, shape.student), (first.teacher_ids, shape.teacher)
    prefixes = [place_prefix(ids, extent.prefix, model.mesh) for ids, extent in sides]
    kls, hidden = dict.fromkeys(systems, 0.0), dict.fromkeys(systems, 0.0)
    tokens = positions = 0.0
    for part in in_batches(pairs, options.batch_size):
        batch = collate(part, rows, shape, GAP_SLOTS, model.eos_ids[0])
        tokens += float(batch.weight_BP.sum())
        positions += float(batch.hidden_weight_BQ.sum())
        batch = put(batch, rows_sharding(model.mesh))

        def read(system: System, batch: Batch = batch) -> Signals:
            side = batch.teacher if system.with_rule else batch.student
            scaled = scaled_adapter(system.adapter, options.scale)
            return _read(model.base, scaled, side, prefixes[system.with_rule], graph=model.graph)

        wanted = read(reference)
        for name, system in systems.items():
            same = system.adapter is reference.adapter and system.with_rule == reference.with_rule
            shown = wanted if same else read(system)
            kl, hidden_L = _compare(model.base, wanted, shown, batch, graph=model.graph)
            kls[name] += float(kl)
            hidden[name] += np.asarray(hidden_L, np.float64)
    return {name: Divergence(kls[name] / tokens, (hidden[name] / positions).tolist()) for name in systems}


def gap_to_close(model: LanguageModel, start: Adapter, prompts: Sequence[Prompts], options: EvalOptions) -> float:
    """E KL(base with rule || base), nats a token: what the rule in context changes, before any training."""
    reference = System(start, with_rule=True)
    pairs = answered_pairs(prompts, answer(model, reference, prompts, options))
    base = {"base": System(start, with_rule=False)}
    shape = gap_shapes({"gap": pairs}, options, row_multiple(model.mesh))["gap"]
    return divergence(model, reference, base, pairs, shape, options)["base"].kl
