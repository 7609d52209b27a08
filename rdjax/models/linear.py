"""Multiplies by kernels, with a LoRA adapter on top where one is given, and by int8 kernels with scales."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Dropout(NamedTuple):
    """Describes dropout on the inputs of adapted projections: one mask for each token, projection and layer.

    Attributes:
      rate: the probability that a number is dropped.
      key: of the step.
      dropout_ids_BT: a number for each token. A token's masks follow from it and the key, wherever the token is.
    """

    rate: float
    key: jax.Array
    dropout_ids_BT: jax.Array


class Lora(NamedTuple):
    """Holds the adapter of one projection: what it adds is x @ a @ b.

    Attributes:
      a, b: matrices, [in, R] and [R, out].
      mask: multiplies the adapter's input, [B, T, in]; None: no dropout.
    """

    a: jax.Array
    b: jax.Array
    mask: jax.Array | None = None


class Linear(nnx.Module):
    """Computes x @ kernel, plus a bias if it has one, plus an adapter's part."""

    def __init__(self, shape: tuple[int, ...], dtype, *, bias: bool = False, int8: bool = False, rngs: nnx.Rngs):
        """
        Args:
          shape: [..., in, out]; leading axes stack the layers.
          int8: the kernel is int8, with a scale for each column (`quantise`).
        """
        if int8:
            self.kernel = nnx.Param(jnp.zeros(shape, jnp.int8))
            self.scale = nnx.Param(jnp.zeros((*shape[:-2], shape[-1]), jnp.float32))
        else:
            self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, dtype))
        if bias:
            self.bias = nnx.Param(jnp.zeros((*shape[:-2], shape[-1]), dtype))

    def __call__(self, x, lora: Lora | None = None):
        # XLA's CPU backend multiplies 2-D operands twice as fast as 3-D ones in the backward pass.
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.kernel[...].astype(x.dtype)
        if hasattr(self, "scale"):
            y = (y * self.scale[...]).astype(x.dtype)
        if hasattr(self, "bias"):
            y = y + self.bias[...]
        if lora is not None:
            if lora.mask is not None:
                rows = rows * lora.mask.reshape(rows.shape).astype(x.dtype)
            y = y + rows @ lora.a.astype(x.dtype) @ lora.b.astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


@jax.jit
def quantise(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a kernel [..., in, out] as int8 and the scale of each column, [..., out]: symmetric, round to nearest.

    The error of a weight is at most half a scale (absmax quantisation by column, Dettmers et al. 2022, arXiv
    2208.07339, without its outlier decomposition).
    """
    kernel32 = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel32), axis=-2) / 127
    rounded = jnp.round(kernel32 / jnp.where(scale > 0, scale, 1.0)[..., None, :])
    return rounded.astype(jnp.int8), scale


def layer_loras(
    adapter: dict[str, dict[str, jax.Array]] | None, dropout: Dropout | None, projections: Sequence[str]
) -> dict[str, Lora]:
    """Returns one layer's adapter by the last part of each projection's path ("q_proj"), with dropout masks.

    Args:
      adapter: {path: {"a": [in, R], "b": [R, out]}}; None: there is none.
      dropout: with the layer's key.
      projections: the paths of all projections; they fix which random bits a mask takes.
    """
    if adapter is None:
        return {}
    adapted = {path: adapter[path]["a"] for path in projections if path in adapter}
    masks = {} if dropout is None else _dropout_masks(dropout, {path: a.shape[0] for path, a in adapted.items()})
    return {path.split(".")[-1]: Lora(a, adapter[path]["b"], masks.get(path)) for path, a in adapted.items()}


def _dropout_masks(dropout: Dropout, widths: dict[str, int]) -> dict[str, jax.Array]:
    """Returns what the inputs of projections are multiplied by, [B, T, width]: 0 or 1 / (1 - rate).

    A mask compares 16 random bits with the rate, so the rate is exact to 1 / 65,536. The bits of all projections are
    drawn at once, because every draw compiles to a long program.
    """
    count = -(-sum(widths.values()) // 2)  # of 32-bit words

    def draw(dropout_id: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(dropout.key, dropout_id), (count,), jnp.uint32)

    words = jax.vmap(draw)(dropout.dropout_ids_BT.reshape(-1))
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*dropout.dropout_ids_BT.shape, -1)
    masks = (bits >= round(dropout.rate * 2**16)) / (1 - dropout.rate)
    ends = itertools.accumulate(widths.values())
    return {path: masks[..., end - width : end] for (path, width), end in zip(widths.items(), ends, strict=True)}
