"""Defines the part of a block that attends: projections, norms of heads, rotation, and what is kept of the tokens."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from rdjax.models.attention import RowPrefix, Scoring, attention, heads_first, rows_first
from rdjax.models.config import SHARING, DecoderConfig
from rdjax.models.inputs import KeysValues, LayerInputs, PassInputs, Shared
from rdjax.models.linear import Linear, Lora
from rdjax.models.norm import RMSNorm, normalise
from rdjax.models.packing import causal_attention
from rdjax.models.rotary import rotate, rotate_queries
from rdjax.parallel.mesh import device_of


class Attention(nnx.Module):
    """Computes attention; its kernels, like those of all parts of a block, are stacked over layers."""

    def __init__(self, c: DecoderConfig, mixer: str, dtype, int8: bool, mesh: Mesh | None, rngs: nnx.Rngs):
        """
        Args:
          mixer: one of `config.MIXERS`. One of `config.SHARING` has no keys and values of its own.
        """
        layers, sizes = len(c.layers_of(mixer)), c.attention_sizes(mixer)

        def linear(rows: int, columns: int, bias: bool) -> Linear:
            return Linear((layers, rows, columns), dtype, bias=bias, int8=int8, rngs=rngs)

        def norm(heads: int) -> RMSNorm:
            width = sizes.head_width * (heads if c.qk_norm == "whole" else 1)
            return RMSNorm((layers, width), dtype, c.norm_epsilon, c.norm)

        shares = mixer in SHARING
        self.q_proj = linear(c.width, c.heads * sizes.head_width * (2 if c.attention_gate else 1), c.qkv_bias)
        if not shares:
            self.k_proj = linear(c.width, sizes.kv_heads * sizes.head_width, c.qkv_bias)
        if not shares and not sizes.keys_as_values:
            self.v_proj = linear(c.width, sizes.kv_heads * sizes.head_width, c.qkv_bias)
        self.o_proj = linear(c.heads * sizes.head_width, c.width, c.o_bias)
        if c.qk_norm:
            self.q_norm = norm(c.heads)
        if c.qk_norm and not shares:
            self.k_norm = norm(sizes.kv_heads)
        self.config, self.sizes, self.mesh = c, sizes, mesh

    def __call__(
        self,
        x_BTD: jax.Array,
        loras: dict[str, Lora],
        shared: PassInputs,
        layer: LayerInputs,
        kind: int | jax.Array,
        source: Shared | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Returns the mixed values [B, T, N * H], and the layer's keys and values [K, B, S, H] with the new ones.

        Args:
          source: the keys and values of another layer, if this one has none of its own.
        """
        q_BTNH, gate_BTNH = self._queries(x_BTD, loras)
        new = None if source is not None else self._keys_values(x_BTD, loras)

        def attend(kind: int, q_BTNH: jax.Array, new: KeysValues | None) -> tuple[jax.Array, KeysValues]:
            return self._attend(kind, q_BTNH, new, shared, layer, source)

        if isinstance(kind, int):
            mixed_BTNH, keys_values = attend(kind, q_BTNH, new)
        else:
            branches = [functools.partial(attend, number) for number in range(len(shared.kinds))]
            mixed_BTNH, keys_values = jax.lax.switch(kind, branches, q_BTNH, new)
        if gate_BTNH is not None:
            mixed_BTNH = mixed_BTNH * jax.nn.sigmoid(gate_BTNH)
        return mixed_BTNH.reshape(*x_BTD.shape[:2], -1), keys_values

    def _queries(self, x_BTD: jax.Array, loras: dict[str, Lora]) -> tuple[jax.Array, jax.Array | None]:
        """Returns the queries, and the gates where the config has them: each head's behind its query."""
        if not self.config.attention_gate:
            return self._normed_heads("q", self._project("q", x_BTD, loras)), None
        both_BTX = self._project("q", x_BTD, loras)
        q_BTNH, gate_BTNH = jnp.split(both_BTX.reshape(*x_BTD.shape[:2], self.config.heads, -1), 2, axis=-1)
        return self.q_norm(q_BTNH) if self.config.qk_norm == "head" else q_BTNH, gate_BTNH

    def _keys_values(self, x_BTD: jax.Array, loras: dict[str, Lora]) -> KeysValues:
        """Returns keys, not yet rotated, and values, [B, T, K, H]."""
        k_BTD = self._project("k", x_BTD, loras)
        v_BTD = k_BTD if self.sizes.keys_as_values else self._project("v", x_BTD, loras)
        v_BTKH = self._by_heads(v_BTD)
        if self.config.value_norm:
            v_BTKH = normalise(v_BTKH, self.config.norm_epsilon).astype(x_BTD.dtype)
        return self._normed_heads("k", k_BTD), v_BTKH

    def _project(self, name: str, x_BTD: jax.Array, loras: dict[str, Lora]) -> jax.Array:
        """Returns queries, keys or values of all heads."""
        y_BTD = getattr(self, f"{name}_proj")(x_BTD, loras.get(f"{name}_proj"))
        if device_of(self.mesh).platform == "tpu":
            # Otherwise the compiler transposes the kernels, and keeps a transposed copy of those of all layers.
            y_BTD = jax.lax.optimization_barrier(y_BTD)
        return y_BTD

    def _by_heads(self, y_BTD: jax.Array) -> jax.Array:
        """Splits queries, keys or values into heads."""
        return y_BTD.reshape(*y_BTD.shape[:2], -1, self.sizes.head_width)

    def _normed_heads(self, name: str, y_BTD: jax.Array) -> jax.Array:
        """Returns queries or keys by heads, normed where the config says so."""
        kind, norm = self.config.qk_norm, getattr(self, f"{name}_norm", None)
        if kind == "whole":
            y_BTD = norm(y_BTD)
        y_BTNH = self._by_heads(y_BTD)
        return norm(y_BTNH) if kind == "head" else y_BTNH

    def _attend(
        self,
        kind: int,
        q_BTNH: jax.Array,
        new: KeysValues | None,
        shared: PassInputs,
        layer: LayerInputs,
        source: Shared | None,
    ) -> tuple[jax.Array, KeysValues]:
        """Computes attention as one kind of layer does; returns [B, T, N, H] and all keys and values."""
        c, sizes, inputs = self.config, self.sizes, shared.kinds[kind]
        scale = sizes.head_width**-0.5 if c.score_scale is None else c.score_scale
        scoring = Scoring(scale, c.score_softcap, c.kinds[kind].window)
        if inputs.angles is not None:
            q_BTNH = rotate_queries(q_BTNH, inputs.angles, c.kinds[kind].rope.interleaved)
        if source is None:
            new, keys_values = self._remember(kind, new, shared, layer)
            prefix = layer.prefix
        else:
            keys_values, prefix = source
            new = tuple(x_KBSH.transpose(1, 2, 0, 3) for x_KBSH in keys_values)
        prefix = None if prefix is None else RowPrefix(*(x_KCH[:, None] for x_KCH in prefix))
        if inputs.mask_BTS is None:
            mixed_BTNH = causal_attention(q_BTNH, *new, prefix, shared.packing, scoring, self.mesh)
        else:
            q_KBTGH = heads_first(q_BTNH, sizes.kv_heads)
            mixed_KBTGH = attention(q_KBTGH, *keys_values, inputs.mask_BTS, scoring, prefix, inputs.prefix_mask_BTC)
            mixed_BTNH = rows_first(mixed_KBTGH)
        return mixed_BTNH, keys_values

    def _remember(
        self, kind: int, new: KeysValues, shared: PassInputs, layer: LayerInputs
    ) -> tuple[KeysValues, KeysValues]:
        """Rotates new keys; returns them and their values, and both behind what the cache has, [K, B, S, H]."""
        (k_BTKH, v_BTKH), inputs = new, shared.kinds[kind]
        if inputs.angles is not None:
            k_BTKH = rotate(k_BTKH, inputs.angles, self.config.kinds[kind].rope.interleaved)
        keys_values = heads_first(k_BTKH)[:, :, :, 0], heads_first(v_BTKH)[:, :, :, 0]
        if layer.cache is not None:
            keys_values = tuple(
                jax.lax.dynamic_update_slice_in_dim(x_KBSH, new_KBTH.astype(x_KBSH.dtype), shared.cache_index, axis=2)
                for x_KBSH, new_KBTH in zip(layer.cache, keys_values, strict=True)
            )
        return (k_BTKH, v_BTKH), keys_values
