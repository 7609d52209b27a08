"""Runs the model over one side of a batch and returns what the losses read.

Teacher and student are the same function: the shared base, an adapter or none, and prompts with the rule or without.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from rdjax.data.batches import Side
from rdjax.models.decoder import Dropout, Prefix
from rdjax.models.lora import Adapter
from rdjax.models.packing import Packing
from rdjax.parallel.mesh import rows_sharding


class Signals(NamedTuple):
    """Holds what a forward pass gives to the losses.

    Attributes:
      inputs_LBQD: the inputs of all blocks at the aligned positions: embeddings and the outputs of blocks 1 .. L-1.
      final_BPD: final-normed hidden states at the prediction positions; the shared head turns them into logits of the
        whole vocabulary, so the logits need not be kept.
    """

    inputs_LBQD: jax.Array
    final_BPD: jax.Array


def signals_shardings(mesh: Mesh) -> Signals:
    """Returns the shardings of signals [M, A, L, B, Q, D] and [M, A, B, P, D]: rows as in the batch."""
    return Signals(rows_sharding(mesh, leading=3), rows_sharding(mesh, leading=2))


def forward_side(
    graph: nnx.GraphDef,
    base: dict[str, Any],
    adapter: Adapter | None,
    side: Side,
    dropout: tuple[float, jax.Array] | None = None,
    remat: str = "none",
    prefix: Prefix | None = None,
    prefix_C: jax.Array | None = None,
) -> Signals:
    """Runs one forward pass over one side of a batch.

    A shared prefix comes in one of two forms: its keys and values, or its tokens, which are then read once a row and
    let gradients through.

    Args:
      adapter: with its scale folded in (`lora.scaled_adapter`).
      dropout: (rate, key) of the adapter.
      remat: what the backward pass recomputes (`Decoder.__call__`).
      prefix: the prefix as keys and values, from `Decoder.read_prefix`.
      prefix_C: the prefix as tokens.
    """
    length = 0
    if prefix_C is not None:
        length = prefix_C.shape[0]
        side = _prepend(side, prefix_C)
    out = nnx.merge(graph, base)(
        side.tokens_BT,
        side.positions_BT,
        adapter=adapter,
        dropout=None if dropout is None else Dropout(*dropout, side.dropout_ids_BT),
        prefix=prefix,
        packing=Packing(side.pack_BT, side.unpack_BEU, length),
        inputs_at_BQ=side.aligned_BQ,
        final_at_BP=side.predict_BP,
        remat=remat,
    )
    return Signals(out.inputs_LBQD, out.final_BPD)


def _prepend(side: Side, prefix_C: jax.Array) -> Side:
    """Puts the prefix's tokens in front of every row, and moves the positions that the losses read behind them."""
    B, C = side.tokens_BT.shape[0], prefix_C.shape[0]
    indices_C = jnp.arange(C)

    def prepend(first_C: jax.Array, x_BT: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.broadcast_to(first_C, (B, C)), x_BT], axis=1)

    return side._replace(
        tokens_BT=prepend(prefix_C, side.tokens_BT),
        positions_BT=prepend(indices_C, side.positions_BT),
        # The ids that the first pair would have here. All sequences of all rows share them, and so one dropout mask.
        dropout_ids_BT=prepend(indices_C, side.dropout_ids_BT),
        predict_BP=side.predict_BP + C,
        aligned_BQ=side.aligned_BQ + C,
    )
