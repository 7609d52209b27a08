"""Defines a block of the decoder: attention and MLP, each with its norms and its residual sum, and what some add."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.models.attention import RowPrefix, Scoring, attention, heads_first, rows_first
from rdjax.models.config import MIXERS, MLPS, PARTS, SHARING, DecoderConfig, LayerKind
from rdjax.models.delta_net import DeltaState, GatedDeltaNet
from rdjax.models.linear import Dropout, Linear, Lora, layer_loras
from rdjax.models.norm import RMSNorm, normalise
from rdjax.models.packing import Packing, causal_attention
from rdjax.models.rotary import Angles, rotate, rotate_queries
from rdjax.models.rows import multiply
from rdjax.parallel.mesh import device_of, rows_spec

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}

KeysValues = tuple[jax.Array, jax.Array]
Past = KeysValues | DeltaState  # what a layer knows of tokens before: of attention, or of a delta net


class KindInputs(NamedTuple):
    """Holds what the layers of one kind (`config.LayerKind`) share in a forward pass.

    Attributes:
      angles: the rotation of queries and keys; None: they are not rotated.
      mask_BTS: which keys a token attends to; None: its own past in its sequence.
      prefix_mask_BTC: which tokens of the prefix it attends to; None: all.
    """

    angles: Angles | None
    mask_BTS: jax.Array | None
    prefix_mask_BTC: jax.Array | None


class PassInputs(NamedTuple):
    """Holds what all layers share in a forward pass.

    Attributes:
      kinds: for each of `DecoderConfig.kinds`.
      packing: of rows that hold several sequences.
      cache_index: slot of the cache for the first new token; None: there is no cache.
      padding_B: tokens of padding at the beginning of each row, for delta nets, which no mask reaches; None: none.
      dropout: its key is not read; each layer has its own.
    """

    kinds: tuple[KindInputs, ...]
    packing: Packing | None
    cache_index: jax.Array | None
    padding_B: jax.Array | None
    dropout: Dropout | None


class LayerInputs(NamedTuple):
    """Holds what one layer reads.

    Attributes:
      params: of the parts of the block that the layer has.
      kind: index into `DecoderConfig.kinds`; None where there is only one, or where the caller knows it.
      embedding_BTJ: what the layer's embeddings have for the tokens; None: there are none.
      adapter: {projection: {"a": [in, R], "b": [R, out]}}.
      dropout_key: of the layer.
      prefix: of tokens before all rows: keys and values [K, C, H], or a state without an axis of rows.
      cache: of each row's tokens so far: keys and values [K, B, S, H], or a state.
    """

    params: Any
    kind: jax.Array | None
    embedding_BTJ: jax.Array | None
    adapter: dict[str, dict[str, jax.Array]] | None
    dropout_key: jax.Array | None
    prefix: Past | None
    cache: Past | None


class Shared(NamedTuple):
    """Holds the keys and values of one layer that later layers attend to.

    Attributes:
      keys_values: [K, B, S, H], all that its tokens can attend to but the prefix.
      prefix: keys and values [K, C, H]; None: there is no prefix.
    """

    keys_values: KeysValues
    prefix: KeysValues | None


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


class MLP(nnx.Module):
    """Computes a gated feed-forward layer (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, c: DecoderConfig, part: str, dtype, int8: bool, rngs: nnx.Rngs):
        """
        Args:
          part: one of `config.MLPS`.
        """
        width = c.shared_feed_forward if part == "shared_mlp" and c.shared_feed_forward else c.feed_forward

        def linear(rows: int, columns: int) -> Linear:
            return Linear((len(c.layers_of(part)), rows, columns), dtype, bias=c.mlp_bias, int8=int8, rngs=rngs)

        self.gate_proj = linear(c.width, width)
        self.up_proj = linear(c.width, width)
        self.down_proj = linear(width, c.width)
        self.activation = c.activation

    def __call__(self, x_BTD: jax.Array, loras: dict[str, Lora]) -> jax.Array:
        gate_BTF = ACTIVATIONS[self.activation](self.gate_proj(x_BTD, loras.get("gate_proj")))
        return self.down_proj(gate_BTF * self.up_proj(x_BTD, loras.get("up_proj")), loras.get("down_proj"))


class LayerEmbedding(nnx.Module):
    """Adds what a layer's embeddings have for the tokens, through a gate that reads the hidden states (Gemma 4)."""

    def __init__(self, c: DecoderConfig, dtype, int8: bool, rngs: nnx.Rngs):
        width = c.layer_embeddings.width
        self.gate = Linear((c.layers, c.width, width), dtype, int8=int8, rngs=rngs)
        self.projection = Linear((c.layers, width, c.width), dtype, int8=int8, rngs=rngs)
        self.norm = RMSNorm((c.layers, c.width), dtype, c.norm_epsilon, c.norm)
        self.activation = c.activation

    def __call__(self, x_BTD: jax.Array, embedding_BTJ: jax.Array) -> jax.Array:
        gate_BTJ = ACTIVATIONS[self.activation](self.gate(x_BTD))
        return x_BTD + self.norm(self.projection(gate_BTJ * embedding_BTJ))


class Block(nnx.Module):
    """Computes one layer. Holds the parameters of all, stacked; they are sliced before a call.

    Where layers differ in their parts, a part's parameters are stacked over the layers that have it, and a call needs a
    block with the parts of one layer alone (`only`).
    """

    def __init__(self, c: DecoderConfig, dtype, int8: bool, mesh: Mesh | None, rngs: nnx.Rngs):
        def norm() -> RMSNorm:
            return RMSNorm((c.layers, c.width), dtype, c.norm_epsilon, c.norm)

        for part in c.parts:
            if part in MLPS:
                module = MLP(c, part, dtype, int8, rngs)
            elif part == "linear_attn":
                module = GatedDeltaNet(c, dtype, int8, rngs)
            else:
                module = Attention(c, part, dtype, int8, mesh, rngs)
            setattr(self, part, module)
        if c.norms in ("before", "both"):
            self.attention_norm, self.mlp_norm = norm(), norm()
        if c.norms in ("after", "both"):
            self.attention_out_norm, self.mlp_out_norm = norm(), norm()
        if c.layer_embeddings is not None:
            self.layer_embedding = LayerEmbedding(c, dtype, int8, rngs)
        if c.layer_scale:
            self.scale = nnx.Param(jnp.ones((c.layers, 1), dtype))
        # In the order of definition, on which random numbers depend; `nnx.merge` sorts attributes by name.
        self.projections = tuple(
            f"{part}.{name}"
            for part in c.parts
            for name, module in vars(getattr(self, part)).items()
            if isinstance(module, Linear)
        )
        self.config, self.mesh = c, mesh

    def __call__(
        self,
        x_BTD: jax.Array,
        shared: PassInputs,
        layer: LayerInputs,
        kind: int | jax.Array,
        at_BP: jax.Array | None = None,
        source: Shared | None = None,
    ) -> tuple[jax.Array, Past]:
        """Returns the output, of all tokens or of those at `at_BP`, and what the layer keeps of the tokens.

        Args:
          source: the keys and values of another layer, if this one has none of its own.
        """
        dropout = None if shared.dropout is None else shared.dropout._replace(key=layer.dropout_key)
        loras = layer_loras(layer.adapter, dropout, self.projections)
        normed_BTD = self._norm("attention_norm", x_BTD)
        mixer, mlp = (next(getattr(self, part) for part in parts if hasattr(self, part)) for parts in (MIXERS, MLPS))
        if isinstance(mixer, Attention):
            mixed_BTD, past = mixer(normed_BTD, loras, shared, layer, kind, source)
            out, name = mixer.o_proj, "o_proj"
        else:
            before = layer.cache if layer.cache is not None else _one_row(layer.prefix)
            mixed_BTD, past = mixer(normed_BTD, loras, before, shared.packing, shared.padding_B)
            out, name = mixer.out_proj, "out_proj"
        embedding_BTJ = layer.embedding_BTJ
        if at_BP is not None:  # no later layer reads the other tokens
            x_BTD, mixed_BTD, loras = self._take(at_BP, x_BTD, mixed_BTD, loras)
            embedding_BTJ = None if embedding_BTJ is None else gather_positions(embedding_BTJ, at_BP)
        x_BTD = self._add(x_BTD, self._norm("attention_out_norm", out(mixed_BTD, loras.get(name))))
        fed_BTD = mlp(self._norm("mlp_norm", x_BTD), loras)
        x_BTD = self._add(x_BTD, self._norm("mlp_out_norm", fed_BTD))
        if embedding_BTJ is not None:
            x_BTD = self.layer_embedding(x_BTD, embedding_BTJ)
        return x_BTD * self.scale[...] if self.config.layer_scale else x_BTD, past

    def only(self, kind: LayerKind) -> "Block":
        """Returns a block with the parts of this kind of layer alone."""
        block = nnx.clone(self)
        for part in PARTS:
            if part not in kind.parts and hasattr(block, part):
                delattr(block, part)
        return block

    def _norm(self, name: str, x_BTD: jax.Array) -> jax.Array:
        """Applies a norm if the block has it."""
        return getattr(self, name)(x_BTD) if hasattr(self, name) else x_BTD

    def _add(self, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        """Adds the output of attention or MLP."""
        scale = self.config.residual_scale
        return x_BTD + (y_BTD if scale == 1.0 else multiply(y_BTD, scale))

    def _take(self, at_BP: jax.Array, x_BTD: jax.Array, mixed_BTD: jax.Array, loras: dict[str, Lora]):
        """Returns everything that has an axis of tokens at some positions alone."""

        def take(x: jax.Array) -> jax.Array:
            # From whole rows: of arrays that are split over the tensor axis too, XLA's partitioner gathers wrong
            # numbers on a mesh of 2 x 2 x 2 (tests/parallel/test_meshes.py).
            return gather_positions(on_mesh(x, self.mesh), at_BP)

        masked = {name: lora for name, lora in loras.items() if lora.mask is not None}
        masked = {name: lora._replace(mask=take(lora.mask)) for name, lora in masked.items()}
        return take(x_BTD), take(mixed_BTD), loras | masked


def _one_row(state: DeltaState | None) -> DeltaState | None:
    """Returns a state of a prefix as that of one row, which stands for all."""
    return None if state is None else jax.tree.map(lambda x: x[None], state)


def on_mesh(x_BTD: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Splits rows over the mesh and nothing else: kernels are then gathered layer by layer, not activations."""
    if mesh is None or mesh.size == 1:
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, NamedSharding(mesh, P(rows_spec(x_BTD.shape[0], mesh))))


def gather_positions(x_BTD: jax.Array, at_BP: jax.Array) -> jax.Array:
    """Gathers the tokens at the positions `at_BP` of each row, [B, P, D]."""
    return jnp.take_along_axis(x_BTD, at_BP[..., None], axis=1)
