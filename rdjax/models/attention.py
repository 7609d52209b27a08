"""Rotary positions, masks and grouped-query attention."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rdjax.models.config import RopeConfig


def rope_frequencies_H(rope: RopeConfig, head_width: int) -> np.ndarray:
    """Angular frequencies of the rotary embedding, float32 [head_width / 2].

    The llama3 scaling leaves short wavelengths alone, divides the frequency of long ones by `factor`
    and blends between (Llama 3.1 release; `transformers.modeling_rope_utils`).
    """
    frequencies = 1.0 / rope.theta ** (np.arange(0, head_width, 2, dtype=np.float32) / head_width)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    if rope.kind == "llama3":
        periods = rope.original_context * frequencies / (2 * math.pi)
        smooth = (periods - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        smooth = np.clip(smooth, 0.0, 1.0)
        frequencies = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    return frequencies.astype(np.float32)


def rope_angles(rope: RopeConfig, head_width: int, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation at each position, float32 [B, T, 1, H / 2]."""
    angles = positions_BT[..., None, None].astype(jnp.float32) * rope_frequencies_H(rope, head_width)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Applies the rotary embedding in float32; Hugging Face's layout (halves, not pairs)."""
    left, right = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def causal_mask(segments_BT: jax.Array) -> jax.Array:
    """Which token may look at which, bool [B, T, T]: the earlier ones of its own segment.

    Segment 0 is padding; a padding token sees itself alone, so that its row stays finite.
    """
    T = segments_BT.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    real = (segments_BT > 0)[:, None, :]
    return (causal & same & real) | jnp.eye(T, dtype=bool)


def shared_prefix_mask(segments_BT: jax.Array) -> jax.Array:
    """Like `causal_mask`, but every segment also looks at segment 1, the prefix that all of a row share."""
    T = segments_BT.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    keys, queries = segments_BT[:, None, :], segments_BT[:, :, None]
    return (causal & ((keys == queries) | (keys == 1)) & (keys > 0)) | jnp.eye(T, dtype=bool)


def attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Scaled dot-product attention with grouped queries [B, T, N, H]; softmax in float32.

    Two things make it fast on CPU: the query heads that share a key head are further rows of one
    matrix product in (B, K, rows, H) layout, and the softmax is divided by its sum after the values
    are mixed, on H numbers a row instead of S.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    q_BKGTH = (q_BTNH * H**-0.5).reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    rows = (B, K, G * T)
    scores = jnp.matmul(q_BKGTH.reshape(*rows, H), k_BKSH.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    bias_BGTS = jnp.broadcast_to(jnp.where(mask_BTS, 0.0, -1e30)[:, None], (B, G, T, S))
    scores = scores + bias_BGTS.reshape(B, 1, G * T, S)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.matmul(weights.astype(v_BSKH.dtype), v_BKSH, preferred_element_type=jnp.float32)
    mixed = (mixed / weights.sum(axis=-1, keepdims=True)).astype(q_BTNH.dtype)
    return mixed.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
