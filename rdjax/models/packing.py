"""Computes attention in rows that hold several sequences, one behind the other without padding between them.

All other layers work on the packed tokens. For attention the sequences are taken apart, so that no scores between
tokens of different sequences are computed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rdjax.models.attention import RowPrefix, Scoring, heads_first, rows_first
from rdjax.models.kernels import choose_kernel


class Packing(NamedTuple):
    """Maps the tokens of packed rows to their sequences and back.

    Attributes:
      pack_BT: index of each token in the row's sequences laid out as [E * U]; -1 for padding.
      unpack_BEU: index of each sequence's tokens in the row; -1 behind a sequence's end.
      prefix_length: number of shared prefix tokens at the start of each row. All sequences of the row attend to them;
        the indices count from behind them.
    """

    pack_BT: jax.Array
    unpack_BEU: jax.Array
    prefix_length: int = 0


def causal_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    prefix: RowPrefix | None,
    packing: Packing | None,
    scoring: Scoring,
    mesh: Mesh | None,
) -> jax.Array:
    """Computes attention of every token to a shared prefix and to the past of its own sequence, [B, T, N, H].

    Args:
      prefix: keys and values of a prefix whose tokens are not in the rows; None where they are.
      packing: None: every row is one sequence.
    """
    qkv = heads_first(q_BTNH, k_BTKH.shape[2]), heads_first(k_BTKH), heads_first(v_BTKH)
    T, C = q_BTNH.shape[1], 0 if packing is None else packing.prefix_length
    longest = T if packing is None else max(packing.unpack_BEU.shape[2], C)
    kernel = choose_kernel(q_BTNH.shape[3], longest, q_BTNH.dtype, scoring, mesh)
    mixed_prefix = []
    if C:
        first = [x_KBTGH[:, :, :C] for x_KBTGH in qkv]
        qkv = [x_KBTGH[:, :, C:] for x_KBTGH in qkv]
        mixed_prefix = [kernel(*first, None, scoring, mesh)]
        prefix = RowPrefix(*(x_KBCGH[:, :, :, 0] for x_KBCGH in first[1:]))
    if packing is not None:
        qkv = [unpack(x_KBTGH, packing.pack_BT, packing.unpack_BEU) for x_KBTGH in qkv]
    mixed_KBTGH = kernel(*qkv, prefix, scoring, mesh)
    if packing is not None:
        mixed_KBTGH = pack(mixed_KBTGH, packing.pack_BT, packing.unpack_BEU)
    return rows_first(jnp.concatenate([*mixed_prefix, mixed_KBTGH], axis=2))


def _gather_tokens(x_KBTGH: jax.Array, indices_BT: jax.Array) -> jax.Array:
    """Gathers tokens of each row; zeros where an index is -1."""
    indices = indices_BT[None, :, :, None, None]
    return jnp.where(indices >= 0, jnp.take_along_axis(x_KBTGH, jnp.maximum(indices, 0), axis=2), 0)


# `pack` and `unpack` are each other's transpose, because padding is zero on both sides. With these gradients both
# directions are gathers. JAX's own gradient of a gather is a scatter: 1.3 to 2 times the time of both on a CPU.


@jax.custom_vjp
def unpack(x_KBTGH: jax.Array, pack_BT: jax.Array, unpack_BEU: jax.Array) -> jax.Array:
    """Takes the sequences out of packed rows, [K, B * E, U, G, H]."""
    (K, B, _, *heads), (_, E, U) = x_KBTGH.shape, unpack_BEU.shape
    return _gather_tokens(x_KBTGH, unpack_BEU.reshape(B, E * U)).reshape(K, B * E, U, *heads)


@jax.custom_vjp
def pack(x_KXUGH: jax.Array, pack_BT: jax.Array, unpack_BEU: jax.Array) -> jax.Array:
    """Puts sequences [K, X = B * E, U, G, H] back into packed rows [K, B, T, G, H]."""
    (K, _, _, *heads), (B, E, U) = x_KXUGH.shape, unpack_BEU.shape
    return _gather_tokens(x_KXUGH.reshape(K, B, E * U, *heads), pack_BT)


unpack.defvjp(lambda x, *indices: (unpack(x, *indices), indices), lambda indices, g: (pack(g, *indices), None, None))
pack.defvjp(lambda x, *indices: (pack(x, *indices), indices), lambda indices, g: (unpack(g, *indices), None, None))
