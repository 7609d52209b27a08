"""Defines the decoder in Flax NNX.

Modules hold parameters only. `nnx.split` turns a decoder into (graph definition, tree of arrays) once, and all
transformations are JAX's own on the tree; `nnx.merge` joins the two inside a trace, where it costs nothing.
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.models.block import Block, gather_positions, on_mesh
from rdjax.models.config import SHARING, AttentionSizes, DecoderConfig
from rdjax.models.delta_net import DeltaState, empty_state
from rdjax.models.inputs import KindInputs, LayerInputs, PassInputs, Past, Shared
from rdjax.models.layers import is_unstacked
from rdjax.models.linear import Dropout, Linear
from rdjax.models.norm import RMSNorm
from rdjax.models.packing import Packing
from rdjax.models.rotary import rope_angles
from rdjax.models.rows import multiply
from rdjax.models.run_layers import parts_of, run_layers
from rdjax.parallel.mesh import cache_sharding, rows_spec


class Cache(NamedTuple):
    """Holds what layers keep of the tokens so far. New tokens are written from slot `index` on in every row.

    Attributes:
      pasts: by mixer, of all layers that have it: of attention keys and values [L, K, B, S, H], of delta nets their
        states. Where layers are unstacked (`models.layers`), lists of L arrays take the place of stacked ones.
    """

    pasts: dict[str, Past]
    index: jax.Array


# What layers keep of tokens that all sequences begin with: as `Cache.pasts`, without an axis of rows.
Prefix = dict[str, Past]


class Output(NamedTuple):
    """Holds what `Decoder.__call__` returns.

    Attributes:
      final_BPD: final-normed hidden states, of all tokens (P = T) unless the call names positions.
      inputs_LBQD: the inputs of every block at the positions that the call names; else None.
      cache: the keys and values so far, if the call has or wants a cache; else None.
    """

    final_BPD: jax.Array
    inputs_LBQD: jax.Array | None
    cache: Cache | None


class Head(NamedTuple):
    """Holds what turns final-normed hidden states into logits (`logits`).

    Attributes:
      kernel_DV: the output embedding.
      scale: multiplies the logits; None: 1.
      softcap: c in c * tanh(logit / c); None: no cap.
    """

    kernel_DV: jax.Array
    scale: float | None = None
    softcap: float | None = None


class LayerEmbeddingTable(nnx.Module):
    """Computes the embeddings that each layer adds: of the token, and of its embedding (Gemma 4)."""

    def __init__(self, c: DecoderConfig, dtype, rngs: nnx.Rngs):
        sizes = c.layer_embeddings
        width = c.layers * sizes.width
        self.table = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (sizes.vocab, width), dtype))
        self.projection = Linear((c.width, width), dtype, rngs=rngs)
        self.norm = RMSNorm((sizes.width,), dtype, c.norm_epsilon, c.norm)
        self.width = sizes.width

    def __call__(self, tokens_BT: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """Returns the embeddings of all layers, [L, B, T, J]."""

        def by_layer(y: jax.Array) -> jax.Array:
            return jnp.moveaxis(y.reshape(*tokens_BT.shape, -1, self.width), 2, 0)

        rows = jnp.take(self.table[...], tokens_BT, axis=0)
        own_LBTJ = by_layer(rows * jnp.asarray(self.width**0.5, rows.dtype))
        projected_LBTJ = by_layer(multiply(self.projection(x_BTD), x_BTD.shape[-1] ** -0.5))
        return multiply(self.norm(projected_LBTJ) + own_LBTJ, 2**-0.5)


class Decoder(nnx.Module):
    """Maps tokens to hidden states, as its config says.

    Paths of projections are Hugging Face's, without the layer number: layers are stacked.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dtype=jnp.float32,
        *,
        int8: bool = False,
        mesh: Mesh | None = None,
        rngs: nnx.Rngs,
    ):
        """
        Args:
          int8: quantise the blocks' kernels; embedding, head, norms and activations have `dtype`.
          mesh: the devices that compute; None: JAX's default device.
        """
        self.config, self.mesh = config, mesh
        self.embed_tokens = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (config.vocab, config.width), dtype))
        self.layers = Block(config, dtype, int8, mesh, rngs)
        if config.layer_embeddings is not None:
            self.layer_embeddings = LayerEmbeddingTable(config, dtype, rngs)
        self.norm = RMSNorm((config.width,), dtype, config.norm_epsilon, config.norm)
        if not config.tied_embeddings:
            self.lm_head = Linear((config.width, config.vocab), dtype, rngs=rngs)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        mask_BTS: jax.Array | None = None,
        *,
        adapter: dict | None = None,
        dropout: Dropout | None = None,
        cache: Cache | None = None,
        prefix: Prefix | None = None,
        packing: Packing | None = None,
        padding_B: jax.Array | None = None,
        inputs_at_BQ: jax.Array | None = None,
        final_at_BP: jax.Array | None = None,
        remat: str = "none",
        keep_cache: bool = False,
    ) -> Output:
        """Runs one forward pass.

        Args:
          tokens_BT: token ids.
          positions_BT: position of each token in its sequence.
          mask_BTS: which keys a token may attend to; S is the number of the cache's slots, or T. Windows narrow it; for
            them, the slots of a row are consecutive tokens. None: every token attends to its past in its own sequence,
            so padding at the end of a row reaches no real token.
          adapter: {projection: {"a": [L, in, R], "b": [L, R, out]}}, scaled (`lora.scaled_adapter`).
          dropout: on the inputs of the adapter.
          cache: keys and values so far; the new ones are written into it.
          prefix: keys and values of a prefix of all sequences.
          packing: of rows that hold several sequences.
          padding_B: tokens of padding at the beginning of each row, counted from the first slot of the cache if there
            is one. Delta nets pass over them; attention has its mask.
          inputs_at_BQ: positions at which to return the inputs of every block.
          final_at_BP: positions at which to return the final states; None: all.
          remat: what the backward pass recomputes: "none"; "full": every block, from its input; "dots": every block,
            except the products of its projections.
          keep_cache: return keys and values even if no cache is given.
        """
        c = self.config
        graphs = [nnx.split(self.layers if c.alike else self.layers.only(kind))[0] for kind in c.kinds]
        params = nnx.to_pure_dict(nnx.split(self.layers)[1])
        if padding_B is not None and cache is not None:
            padding_B = jnp.clip(padding_B - cache.index, 0, tokens_BT.shape[1])
        shared = PassInputs(
            self._kind_inputs(positions_BT, mask_BTS, prefix, cache),
            packing,
            None if cache is None else cache.index,
            padding_B,
            dropout,
        )
        keeps_cache = keep_cache or cache is not None

        def run_block(x_BTD, layer: LayerInputs, kind: int | jax.Array, at_BP=None, source: Shared | None = None):
            inputs_BQD = None if inputs_at_BQ is None else gather_positions(x_BTD, inputs_at_BQ)
            block = nnx.merge(graphs[0 if c.alike else kind], layer.params)
            x_BTD, past = block(x_BTD, shared, layer, kind, at_BP, source)
            keeps = source is None and (keeps_cache or c.shares)
            return on_mesh(x_BTD, self.mesh), (inputs_BQD, past if keeps else None)

        keys = None if dropout is None else jax.random.split(dropout.key, c.layers)
        x_BTD = on_mesh(self._embed(tokens_BT), self.mesh)
        embeddings = self.layer_embeddings(tokens_BT, x_BTD) if c.layer_embeddings is not None else None
        pasts = None if cache is None else cache.pasts
        parts = parts_of(c, params, LayerInputs(None, None, embeddings, adapter, keys, prefix, pasts))
        ran = run_layers(c, run_block, x_BTD, parts, final_at_BP, remat)
        if keeps_cache:
            cache = Cache(ran.pasts, (0 if cache is None else cache.index) + tokens_BT.shape[1])
        return Output(self.norm(ran.x_BPD), ran.inputs_LBQD, cache)

    def _kind_inputs(
        self, positions_BT: jax.Array, mask_BTS: jax.Array | None, prefix: Prefix | None, cache: Cache | None
    ) -> tuple[KindInputs, ...]:
        """Returns rotation angles and masks for each kind of layer."""
        c = self.config
        all_kinds = []
        for kind in c.kinds:
            angles = None if kind.rope is None else rope_angles(kind.rope, positions_BT)
            inputs = KindInputs(angles, mask_BTS, None)
            if mask_BTS is not None and kind.window is not None:
                keys_BS = _key_positions(positions_BT, mask_BTS.shape[-1], cache)
                inputs = inputs._replace(mask_BTS=mask_BTS & _in_window(positions_BT, keys_BS, kind.window))
                if prefix is not None:
                    C = jax.tree.leaves(prefix[SHARING.get(kind.mixer, kind.mixer)])[0].shape[-2]
                    inputs = inputs._replace(prefix_mask_BTC=_in_window(positions_BT, jnp.arange(C)[None], kind.window))
            all_kinds.append(inputs)
        return tuple(all_kinds)

    def read_prefix(self, prefix_C: jax.Array, adapter: dict | None) -> Prefix:
        """Returns the keys and values of tokens that many sequences begin with."""
        cache = self(prefix_C[None], jnp.arange(prefix_C.shape[0])[None], adapter=adapter, keep_cache=True).cache
        return map_pasts(lambda x, axis: jnp.squeeze(x, axis), cache.pasts)

    def empty_cache(self, rows: int, slots: int, prefix: Prefix | None = None) -> Cache:
        """Returns a cache of zeros for `slots` tokens in each row; delta nets begin with the states of the prefix."""
        c, dtype = self.config, self.embed_tokens[...].dtype
        unstacked = is_unstacked(nnx.to_pure_dict(nnx.split(self.layers)[1]))

        def zeros(sizes: AttentionSizes, *layers: int) -> jax.Array:
            x = jnp.zeros((*layers, sizes.kv_heads, rows, slots, sizes.head_width), dtype)
            if self.mesh is None:
                return x
            return jax.lax.with_sharding_constraint(x, cache_sharding(rows, self.mesh, len(layers)))

        def first(mixer: str) -> Past:
            layers = len(c.layers_of(mixer))
            if mixer != "linear_attn":
                sizes = c.attention_sizes(mixer)
                return tuple([zeros(sizes) for _ in range(layers)] if unstacked else zeros(sizes, layers) for _ in "kv")
            if prefix is not None:
                return map_past(lambda x, axis: jnp.repeat(jnp.expand_dims(x, axis), rows, axis), prefix[mixer])
            state = empty_state(c.delta_net, rows, dtype)
            return jax.tree.map(lambda x: [x] * layers if unstacked else jnp.stack([x] * layers), state)

        pasts = {mixer: first(mixer) for mixer in c.mixers if mixer not in SHARING}
        return Cache(pasts, jnp.zeros((), jnp.int32))

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        """Returns the tokens' scaled embeddings, [B, T, D]."""
        x_BTD = jnp.take(self.embed_tokens[...], tokens_BT, axis=0)
        if self.config.embedding_scale != 1.0:
            x_BTD = x_BTD * jnp.asarray(self.config.embedding_scale, x_BTD.dtype)
        if self.mesh is None or self.mesh.size == 1 or rows_spec(tokens_BT.shape[0], self.mesh) is None:
            return x_BTD
        # First sharded as the table is, the width over fsdp: from there to whole rows is one exchange, which XLA does
        # not find by itself on all meshes.
        return jax.lax.with_sharding_constraint(x_BTD, NamedSharding(self.mesh, P("data", None, "fsdp")))

    def head(self) -> Head:
        """Returns what turns final-normed hidden states into logits."""
        kernel_DV = self.embed_tokens[...].T if self.config.tied_embeddings else self.lm_head.kernel[...]
        scale = None if self.config.logit_scale == 1.0 else self.config.logit_scale
        return Head(kernel_DV, scale, self.config.logit_softcap)

    def logits(self, final_BPD: jax.Array) -> jax.Array:
        """Returns next-token logits [B, P, V] in float32 from final-normed hidden states."""
        return logits(final_BPD, self.head())


def logits(final_BPD: jax.Array, head: Head) -> jax.Array:
    """Returns next-token logits [B, P, V] in float32 from final-normed hidden states."""
    logits_BPV = jnp.matmul(final_BPD, head.kernel_DV, preferred_element_type=jnp.float32)
    if head.scale is not None:
        logits_BPV = logits_BPV * head.scale
    return logits_BPV if head.softcap is None else head.softcap * jnp.tanh(logits_BPV / head.softcap)


def map_pasts(change: Callable[[jax.Array, int], jax.Array], pasts: dict[str, Past]) -> dict[str, Past]:
    """Applies `change` to all that layers keep of tokens, as `map_past`."""
    return {mixer: map_past(change, past) for mixer, past in pasts.items()}


def map_past(change: Callable[[jax.Array, int], jax.Array], past: Past) -> Past:
    """Applies `change` (array, axis of rows) to what the layers of one mixer keep of tokens.

    The axis is that of rows in keys and values [.., K, B, S, H], and in states [.., B, Z, X] and [.., B, I, H, J]; or
    where it belongs in arrays without it.
    """
    axes = DeltaState(-3, -4) if isinstance(past, DeltaState) else (-3, -3)
    parts = [jax.tree.map(lambda x, axis=axis: change(x, axis), part) for part, axis in zip(past, axes, strict=True)]
    return DeltaState(*parts) if isinstance(past, DeltaState) else tuple(parts)


def _key_positions(positions_BT: jax.Array, S: int, cache: Cache | None) -> jax.Array:
    """Returns the position of each key in its sequence, [B, S]: those of the tokens, or of the cache's slots."""
    if cache is None:
        return positions_BT
    # From the last token, which is real: a row may begin with padding.
    return positions_BT[:, -1:] + jnp.arange(S) - (cache.index + positions_BT.shape[1] - 1)


def _in_window(queries_BT: jax.Array, keys_BS: jax.Array, window: int) -> jax.Array:
    """Tells which keys are among the last `window` tokens of each query, bool [B, T, S]."""
    return queries_BT[:, :, None] - keys_BS[:, None, :] < window


@functools.cache
def projection_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Returns [in, out] of every projection of a block by its path ("self_attn.q_proj"), in the order of definition."""
    block = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))).layers
    return {path: operator.attrgetter(path)(block).kernel.shape[1:] for path in block.projections}
