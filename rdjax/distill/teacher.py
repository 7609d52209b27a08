"""The teacher: the starting weights reading the rule, and what the losses read of it.

A teacher is just arguments: the base that the student shares, a frozen adapter or none, and the prompts
with the rule.
"""

from typing import Any, NamedTuple

import jax
from flax import nnx

from rdjax.data.batches import Side
from rdjax.models.decoder import Dropout, Packing, Prefix, gather_positions
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


def read_prefix(
    graph: nnx.GraphDef, base: dict[str, Any], adapter: Adapter | None, prefix_C: jax.Array, remat: str = "none"
) -> Prefix:
    """What stands before every sequence, read once. `adapter`: scaled."""
    return nnx.merge(graph, base).read_prefix(prefix_C, adapter, remat)


def read_side(
    graph: nnx.GraphDef,
    base: dict[str, Any],
    adapter: Adapter | None,
    side: Side,
    dropout: Dropout | None = None,
    remat: str = "none",
    prefix: Prefix | None = None,
) -> Signals:
    """One forward over one side of a batch.

    Args:
      adapter: scaled (`lora.effective`).
      prefix: of the tokens that the side leaves out.
    """
    out = nnx.merge(graph, base)(
        side.tokens_BT,
        side.positions_BT,
        adapter=adapter,
        dropout=dropout,
        prefix=prefix,
        packing=Packing(side.pack_BT, side.unpack_BEU),
        inputs_at_BQ=side.aligned_BQ,
        remat=remat,
    )
    return Signals(out.inputs_LBQD, gather_positions(out.final_BTD, side.predict_BP))
