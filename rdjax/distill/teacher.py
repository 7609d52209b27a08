"""The teacher: the starting weights reading the rule, and what the losses read of it.

A teacher is just arguments: the base that the student shares, a frozen adapter or none, and the prompts
with the rule.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rdjax.data.batches import Side
from rdjax.models.attention import Packing
from rdjax.models.decoder import Dropout, Prefix
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


def read_prefix(graph: nnx.GraphDef, base: dict[str, Any], adapter: Adapter | None, prefix_C: jax.Array) -> Prefix:
    """What stands before every sequence, read once for many batches. `adapter`: scaled."""
    return nnx.merge(graph, base).read_prefix(prefix_C, adapter)


def read_side(
    graph: nnx.GraphDef,
    base: dict[str, Any],
    adapter: Adapter | None,
    side: Side,
    dropout: tuple[float, jax.Array] | None = None,
    remat: str = "none",
    prefix: Prefix | None = None,
    lead_C: jax.Array | None = None,
) -> Signals:
    """One forward over one side of a batch.

    The tokens that the side leaves out come from one of two places.

    Args:
      adapter: scaled (`lora.scaled_adapter`).
      dropout: (rate, key) of the adapter.
      prefix: what `read_prefix` made of them.
      lead_C: the tokens themselves; they are read in front of each row, once for all of its sequences.
    """
    lead = 0
    if lead_C is not None:
        lead = lead_C.shape[0]
        side = _led(side, lead_C)
    out = nnx.merge(graph, base)(
        side.tokens_BT,
        side.positions_BT,
        adapter=adapter,
        dropout=None if dropout is None else Dropout(*dropout, side.dropout_ids_BT),
        prefix=prefix,
        packing=Packing(side.pack_BT, side.unpack_BEU, lead),
        inputs_at_BQ=side.aligned_BQ,
        final_at_BP=side.predict_BP,
        remat=remat,
    )
    return Signals(out.inputs_LBQD, out.final_BPD)


def _led(side: Side, lead_C: jax.Array) -> Side:
    """Rows that begin with the tokens that the side leaves out."""
    B, C = side.tokens_BT.shape[0], lead_C.shape[0]
    at_C = jnp.arange(C)

    def behind(first_C: jax.Array, x_BT: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.broadcast_to(first_C, (B, C)), x_BT], axis=1)

    return side._replace(
        tokens_BT=behind(lead_C, side.tokens_BT),
        positions_BT=behind(at_C, side.positions_BT),
        # The draws of the first pair's places, which are its own from C on: shared by all sequences, and by all rows.
        dropout_ids_BT=behind(at_C, side.dropout_ids_BT),
        predict_BP=side.predict_BP + C,
        aligned_BQ=side.aligned_BQ + C,
    )
