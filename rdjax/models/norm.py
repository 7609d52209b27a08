"""Normalises vectors by their root mean square (Zhang and Sennrich 2019, arXiv 1910.07467)."""

import jax
import jax.numpy as jnp
from flax import nnx

from rdjax.models.rows import scale_rows

# How the weight w multiplies a normalised x: in the dtype of the activations (Llama), in float32 (OLMo), or as 1 + w in
# float32 (Gemma).
NORMS = ("weight", "weight_in_float32", "one_plus_weight")


def normalise(x: jax.Array, epsilon: float) -> jax.Array:
    """Divides vectors along the last axis by their root mean square; returns float32."""
    x32 = x.astype(jnp.float32)
    return scale_rows(x32, jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon))


class RMSNorm(nnx.Module):
    """Normalises along the last axis, in float32."""

    def __init__(self, shape: tuple[int, ...], dtype, epsilon: float, kind: str = "weight"):
        one = jnp.zeros if kind == "one_plus_weight" else jnp.ones
        self.weight = nnx.Param(one(shape, dtype))
        self.epsilon, self.kind = epsilon, kind

    def __call__(self, x):
        normed = normalise(x, self.epsilon)
        if self.kind == "weight":
            return normed.astype(x.dtype) * self.weight[...]
        weight = self.weight[...].astype(jnp.float32) + (1.0 if self.kind == "one_plus_weight" else 0.0)
        return (normed * weight).astype(x.dtype)
