"""Rotates queries and keys by their positions (RoPE, Su et al. 2021, arXiv 2104.09864), and reads its scalings."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rdjax.models.config import RopeConfig


class Angles(NamedTuple):
    """Holds the rotation of each token; H is the rotated part of a head.

    Attributes:
      cos_BT1H, sin_BT1H: cosines and signed sines, float32.
      query_scale_BT11: multiplies queries; None: 1.
    """

    cos_BT1H: jax.Array
    sin_BT1H: jax.Array
    query_scale_BT11: jax.Array | None


def rope_angles(rope: RopeConfig, positions_BT: jax.Array) -> Angles:
    """Returns the rotation at each position."""
    positions_BT11 = positions_BT[..., None, None].astype(jnp.float32)
    angles = positions_BT11 * np.array(rope.frequencies, np.float32)
    cos, sin = rope.amplitude * jnp.cos(angles), rope.amplitude * jnp.sin(angles)
    if rope.interleaved:
        cos, sin = jnp.repeat(cos, 2, axis=-1), jnp.stack([-sin, sin], axis=-1).reshape(*sin.shape[:-1], -1)
    else:
        cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    if not rope.query_growth:
        return Angles(cos, sin, None)
    return Angles(cos, sin, 1 + rope.query_growth * jnp.log1p(positions_BT11 // rope.query_period))


def rotate(x_BTNH: jax.Array, angles: Angles, interleaved: bool = False) -> jax.Array:
    """Rotates the first part of every head, as wide as the angles."""
    width = angles.cos_BT1H.shape[-1]
    rotated = x_BTNH[..., :width].astype(jnp.float32)
    if interleaved:
        partners = rotated.reshape(*rotated.shape[:-1], -1, 2)[..., ::-1].reshape(rotated.shape)
    else:
        partners = jnp.roll(rotated, width // 2, axis=-1)
    rotated = (rotated * angles.cos_BT1H + partners * angles.sin_BT1H).astype(x_BTNH.dtype)
    if width == x_BTNH.shape[-1]:
        return rotated
    return jnp.concatenate([rotated, x_BTNH[..., width:]], axis=-1)


def rotate_queries(q_BTNH: jax.Array, angles: Angles, interleaved: bool = False) -> jax.Array:
    """Rotates queries, and scales them where their model does."""
    q_BTNH = rotate(q_BTNH, angles, interleaved)
    return q_BTNH if angles.query_scale_BT11 is None else q_BTNH * angles.query_scale_BT11.astype(q_BTNH.dtype)


class Scaling(NamedTuple):
    """Holds what a kind of scaling changes the frequencies by.

    Attributes:
      fields: `rope_parameters` of a checkpoint's config.
      theta: base of the frequencies.
      head_width: width of a head.
      max_positions: `max_position_embeddings`.
    """

    fields: dict[str, Any]
    theta: float
    head_width: int
    max_positions: int

    @property
    def original_positions(self) -> int:
        """Returns the longest sequence before the context was extended."""
        return self.fields.get("original_max_position_embeddings") or self.max_positions

    @property
    def factor(self) -> float:
        """Returns by how much the context was extended."""
        return self.fields.get("factor") or self.max_positions / self.original_positions


def make_rope(fields: dict[str, Any], head_width: int, max_positions: int) -> RopeConfig:
    """Returns rotary positions from `rope_parameters`, as `transformers.modeling_rope_utils` defines them.

    Raises:
      KeyError: a field is missing, or `rope_type` is none of `SCALINGS`.
    """
    theta = float(fields["rope_theta"])
    width = int(head_width * fields.get("partial_rotary_factor", 1.0))
    frequencies = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float32) / width)
    kind = fields.get("rope_type", fields.get("type", "default"))
    return SCALINGS[kind](frequencies, Scaling(fields, theta, head_width, max_positions))


def _rope(frequencies: np.ndarray) -> RopeConfig:
    return RopeConfig(tuple(frequencies.astype(np.float32).tolist()))


def _unscaled(frequencies: np.ndarray, scaling: Scaling) -> RopeConfig:
    """Keeps the frequencies. That is dynamic NTK scaling too, which changes nothing up to `max_position_embeddings`."""
    del scaling
    return _rope(frequencies)


def _linear(frequencies: np.ndarray, scaling: Scaling) -> RopeConfig:
    """Divides all frequencies (Chen et al. 2023, arXiv 2306.15595)."""
    return _rope(frequencies / scaling.fields["factor"])


def _llama3(frequencies: np.ndarray, scaling: Scaling) -> RopeConfig:
    """Divides low frequencies, keeps high ones, and blends between (Llama 3.1 release)."""
    low, high = scaling.fields["low_freq_factor"], scaling.fields["high_freq_factor"]
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return _rope((1 - kept) * frequencies / scaling.fields["factor"] + kept * frequencies)


def _yarn(frequencies: np.ndarray, scaling: Scaling) -> RopeConfig:
    """Divides low frequencies, keeps high ones, and blends between (YaRN, Peng et al. 2023, arXiv 2309.00071)."""
    fields, factor, width = scaling.fields, scaling.factor, 2 * len(frequencies)

    def index(turns: float) -> float:
        """Returns the index of the frequency that turns so often within the original context."""
        positions = scaling.original_positions / (turns * 2 * math.pi)
        return width * math.log(positions) / (2 * math.log(scaling.theta))

    low, high = index(fields.get("beta_fast") or 32), index(fields.get("beta_slow") or 1)
    if fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    divided = np.clip((np.arange(len(frequencies)) - low) / ((high - low) or 0.001), 0.0, 1.0)

    def amplitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weights = fields.get("mscale"), fields.get("mscale_all_dim")
    default = amplitude(weights[0]) / amplitude(weights[1]) if all(weights) else amplitude(1.0)
    rope = _rope(divided * frequencies / factor + (1 - divided) * frequencies)
    return dataclasses.replace(rope, amplitude=fields.get("attention_factor") or default)


def _longrope(frequencies: np.ndarray, scaling: Scaling) -> RopeConfig:
    """Divides each frequency by its own factor, another one for long sequences (Ding et al. 2024, arXiv 2402.13753)."""
    short, long = (
        _rope(frequencies / np.array(scaling.fields[name], np.float32)) for name in ("short_factor", "long_factor")
    )
    factor = scaling.factor
    default = math.sqrt(1 + math.log(factor) / math.log(scaling.original_positions)) if factor > 1 else 1.0
    amplitude = scaling.fields.get("attention_factor") or default
    return dataclasses.replace(short, amplitude=amplitude, long_frequencies=long.frequencies)


def _proportional(frequencies: np.ndarray, scaling: Scaling) -> RopeConfig:
    """Rotates a part of each head, by the frequencies of a whole one (Gemma 4)."""
    del frequencies
    rotated = int(scaling.head_width * scaling.fields.get("partial_rotary_factor", 1.0) // 2)
    whole = 1.0 / scaling.theta ** (np.arange(0, 2 * rotated, 2, dtype=np.float32) / scaling.head_width)
    still = np.zeros(scaling.head_width // 2 - len(whole), np.float32)
    return _rope(np.concatenate([whole, still]) / scaling.fields.get("factor", 1.0))


# By `rope_type`.
SCALINGS: dict[str, Callable[[np.ndarray, Scaling], RopeConfig]] = {
    "default": _unscaled,
    "linear": _linear,
    "dynamic": _unscaled,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}
