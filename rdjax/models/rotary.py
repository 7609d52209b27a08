"""Rotates queries and keys by their positions (RoPE, Su et al. 2021, arXiv 2104.09864)."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rdjax.models.config import RopeConfig

Angles = tuple[jax.Array, jax.Array]  # cosines and signed sines, float32 [B, T, 1, H], for `rotate`


def _llama3(frequencies: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Divides low frequencies by `factor`, keeps high ones, and blends between (Llama 3.1 release)."""
    periods = rope.original_context * frequencies / (2 * math.pi)
    smooth = (periods - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


# How each kind of scaling changes the frequencies (`transformers.modeling_rope_utils`).
FREQUENCIES: dict[str, Callable[[np.ndarray, RopeConfig], np.ndarray]] = {
    "default": lambda frequencies, rope: frequencies,
    "linear": lambda frequencies, rope: frequencies / rope.factor,
    "llama3": _llama3,
}


def rope_frequencies(rope: RopeConfig, head_width: int) -> np.ndarray:
    """Returns the angular frequencies of a rotary embedding, float32 [rotated width / 2]."""
    width = int(rope.fraction * head_width)
    frequencies = 1.0 / rope.theta ** (np.arange(0, width, 2, dtype=np.float32) / width)
    return FREQUENCIES[rope.kind](frequencies, rope).astype(np.float32)


def rope_angles(rope: RopeConfig, head_width: int, positions_BT: jax.Array) -> Angles:
    """Returns the cosines and signed sines of the rotation at each position; H is the rotated part of a head."""
    angles = positions_BT[..., None, None].astype(jnp.float32) * rope_frequencies(rope, head_width)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x_BTNH: jax.Array, angles: Angles) -> jax.Array:
    """Rotates the first part of every head, as wide as the angles, in Hugging Face's layout (halves, not pairs)."""
    cos, sin = angles
    width = cos.shape[-1]
    rotated = x_BTNH[..., :width].astype(jnp.float32)
    rotated = (rotated * cos + jnp.roll(rotated, width // 2, axis=-1) * sin).astype(x_BTNH.dtype)
    if width == x_BTNH.shape[-1]:
        return rotated
    return jnp.concatenate([rotated, x_BTNH[..., width:]], axis=-1)
