"""The teacher: the starting weights reading the rule, and what the losses read of it.

A teacher is just arguments: the base that the student shares, a frozen adapter or none, and the prompts
with the rule.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rdjax.data.batches import Side
from rdjax.models.attention import causal_mask
from rdjax.models.decoder import Dropout, gather_positions
from rdjax.models.lora import Adapter


class Signals(NamedTuple):
    """What a forward gives to the losses.

    Attributes:
      inputs_LBQD: the inputs of all blocks at the aligned positions: embeddings and blocks 1 .. L-1.
      final_BPD: final-normed hidden states at the prediction positions; the shared head turns them into
        logits of the whole vocabulary, so nothing is lost by keeping these alone.
    """

    inputs_LBQD: jax.Array
    final_BPD: jax.Array


def read_side(
    graph: nnx.GraphDef,
    base: dict[str, Any],
    adapter: Adapter | None,
    side: Side,
    dropout: Dropout | None = None,
    remat: bool = False,
    prefix_C: jax.Array | None = None,
) -> Signals:
    """One forward over one side of a batch.

    Args:
      adapter: scaled (`lora.effective`).
      prefix_C: tokens that stand before every row and are read once for all; for forward passes only.
    """
    decoder = nnx.merge(graph, base)
    B, T = side.tokens_BT.shape
    segments_BT = (jnp.arange(T) < side.lengths_B[:, None]).astype(jnp.int32)
    positions_BT = jnp.broadcast_to(jnp.arange(T), side.tokens_BT.shape)
    mask_BTS, cache = causal_mask(segments_BT), None
    if prefix_C is not None:
        C = prefix_C.shape[0]
        positions_BT, cache = C + positions_BT, decoder.read_prefix(prefix_C, B, T, adapter)
        mask_BTS = jnp.concatenate([jnp.ones((B, T, C), bool), mask_BTS], axis=-1)
    out = decoder(
        side.tokens_BT,
        positions_BT,
        mask_BTS,
        adapter=adapter,
        dropout=dropout,
        cache=cache,
        inputs_at_BQ=side.aligned_BQ,
        remat=remat,
    )
    return Signals(out.inputs_LBQD, gather_positions(out.final_BTD, side.predict_BP))


def logits(graph: nnx.GraphDef, base: dict[str, Any], final_BPD: jax.Array) -> jax.Array:
    """Logits of the whole vocabulary, float32 [B, P, V]."""
    return nnx.merge(graph, base).logits(final_BPD)
