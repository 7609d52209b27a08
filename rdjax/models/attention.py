"""Computes attention, and builds the masks that say which tokens attend to which.

Queries are [K, B, T, G, H]: the G query heads of one key head are rows of the same matrix product.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rdjax.models.rows import multiply, scale_rows


class Scoring(NamedTuple):
    """Describes how queries score keys; all of it is static.

    Attributes:
      scale: multiplies the scores.
      softcap: c in c * tanh(score / c); None: no cap.
      window: number of tokens that a token attends to, the last of which is itself; None: all up to itself.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None


class RowPrefix(NamedTuple):
    """Holds one layer's keys and values of tokens that several sequences begin with.

    With B rows of a prefix and X sequences, each row belongs to X / B neighbouring sequences; often B is 1.
    """

    k_KBCH: jax.Array
    v_KBCH: jax.Array


def heads_first(x_BTNH: jax.Array, kv_heads: int | None = None) -> jax.Array:
    """Reorders queries, keys or values [B, T, N, H] to [K, B, T, G, H]; K is N where `kv_heads` is not given."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, kv_heads or N, -1, H).transpose(2, 0, 1, 3, 4)


def rows_first(x_KBTGH: jax.Array) -> jax.Array:
    """Reorders [K, B, T, G, H] to [B, T, N, H]; the inverse of `heads_first`."""
    K, B, T, G, H = x_KBTGH.shape
    return x_KBTGH.transpose(1, 2, 0, 3, 4).reshape(B, T, K * G, H)


def causal_mask(T: int, S: int, window: int | None = None) -> jax.Array:
    """Returns which of S tokens the last T of them attend to, bool [1, T, S]: all up to themselves, or `window`."""
    past = jnp.tril(jnp.ones((1, T, S), bool), k=S - T)
    return past if window is None else past & ~jnp.tril(past, k=S - T - window)


def shared_prefix_mask(segments_BT: jax.Array) -> jax.Array:
    """Returns which token attends to which, bool [B, T, T]: the earlier ones of its own segment and of segment 1.

    Segment 1 is a prefix of all other segments of the row. Segment 0 is padding; a padding token attends to itself
    alone, so that its numbers stay finite.
    """
    T = segments_BT.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    keys, queries = segments_BT[:, None, :], segments_BT[:, :, None]
    return (causal & ((keys == queries) | (keys == 1)) & (keys > 0)) | jnp.eye(T, dtype=bool)


def attention(
    q_KBTGH: jax.Array,
    k_KBSH: jax.Array,
    v_KBSH: jax.Array,
    mask_BTS: jax.Array,
    scoring: Scoring,
    prefix: RowPrefix | None = None,
    prefix_mask_BTC: jax.Array | None = None,
) -> jax.Array:
    """Computes scaled dot-product attention with grouped queries, [K, B, T, G, H]; softmax in float32.

    The prefix is never copied into each row, and the softmax is divided by its sum after the values are summed (H
    divisions instead of S for each query): both make CPUs faster.

    Args:
      mask_BTS: which of the S keys a token attends to (B or 1 rows).
      scoring: its window is not read; the masks hold it.
      prefix: further keys and values.
      prefix_mask_BTC: which of the prefix's keys a token attends to; None: all.
    """
    K, B, T, G, H = q_KBTGH.shape
    q_KBXH = multiply(q_KBTGH, scoring.scale).reshape(K, B, T * G, H)  # X: query heads within tokens

    def masked(scores_KBXS: jax.Array, mask_BTS: jax.Array) -> jax.Array:
        return scores_KBXS + jnp.repeat(jnp.where(mask_BTS, 0.0, -1e30), G, axis=1)

    parts = [(masked(_scores(q_KBXH, k_KBSH, scoring), mask_BTS), v_KBSH)]
    if prefix is not None:
        k_KBCH, v_KBCH = (x_KBCH.astype(q_KBXH.dtype) for x_KBCH in prefix)
        scores_KBXC = _scores(q_KBXH.reshape(K, k_KBCH.shape[1], -1, H), k_KBCH, scoring).reshape(K, B, T * G, -1)
        if prefix_mask_BTC is not None:
            scores_KBXC = masked(scores_KBXC, prefix_mask_BTC)
        parts.append((scores_KBXC, v_KBCH))
    top_KBX1 = functools.reduce(jnp.maximum, (scores.max(axis=-1, keepdims=True) for scores, _ in parts))
    top_KBX1 = jax.lax.stop_gradient(top_KBX1)
    mixed_KBXH, total_KBX1 = 0.0, 0.0
    for scores_KBXS, v_KBSH in parts:
        weights_KBXS = jnp.exp(scores_KBXS - top_KBX1)
        total_KBX1 += weights_KBXS.sum(axis=-1, keepdims=True)
        weights_KBXS = weights_KBXS.astype(v_KBSH.dtype).reshape(K, v_KBSH.shape[1], -1, v_KBSH.shape[2])
        mixed_KBXH += jnp.matmul(weights_KBXS, v_KBSH, preferred_element_type=jnp.float32).reshape(q_KBXH.shape)
    return scale_rows(mixed_KBXH, 1 / total_KBX1).astype(q_KBTGH.dtype).reshape(q_KBTGH.shape)


def _scores(q_KBXH: jax.Array, k_KBSH: jax.Array, scoring: Scoring) -> jax.Array:
    """Computes the scores of scaled queries, float32 [K, B, X, S]."""
    scores_KBXS = jnp.einsum("kbxh,kbsh->kbxs", q_KBXH, k_KBSH, preferred_element_type=jnp.float32)
    return scores_KBXS if scoring.softcap is None else scoring.softcap * jnp.tanh(scores_KBXS / scoring.softcap)
