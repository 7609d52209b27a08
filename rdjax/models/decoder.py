"""The decoder: a Llama in Flax NNX, its layers scanned or looped over (`models.layers`).

Modules hold parameters only. `nnx.split` turns a decoder into (graphdef, tree of arrays) once, and all
transformations are JAX's own on the tree; `nnx.merge` joins the two inside a trace, where it costs nothing.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.models.attention import (
    Before,
    Packing,
    attention,
    causal_attention,
    heads_first,
    rope_angles,
    rotate,
    rows_first,
)
from rdjax.models.config import DecoderConfig
from rdjax.models.layers import loop, loops_over_layers
from rdjax.models.rows import scale_rows
from rdjax.parallel.mesh import cache_sharding, device_of, rows_spec

# The linear projections of a block, in the order that their dropout is drawn.
PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

REMAT = {
    "none": lambda layer: layer,
    "full": jax.checkpoint,
    "dots": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


class Dropout(NamedTuple):
    """Dropout on the inputs of adapted projections: one mask a token, projection and layer.

    Attributes:
      rate: the probability that a number is dropped.
      key: of the step.
      draws_BT: a number for each token; wherever the token stands, its mask follows from this and the key.
    """

    rate: float
    key: jax.Array
    dropout_ids_BT: jax.Array


class Cache(NamedTuple):
    """Keys and values of all layers. New tokens are written from slot `index` on, in every row alike.

    Where layers are looped over, a list of arrays [K, B, S, H] stands for a stacked one.
    """

    k_LKBSH: jax.Array | list[jax.Array]
    v_LKBSH: jax.Array | list[jax.Array]
    index: jax.Array


class Prefix(NamedTuple):
    """Keys and values of tokens that all sequences begin with, as `Decoder.read_prefix` makes them.

    Where layers are looped over, a list of arrays [K, C, H] stands for a stacked one.
    """

    k_LKCH: jax.Array | list[jax.Array]
    v_LKCH: jax.Array | list[jax.Array]


class Output(NamedTuple):
    """What `Decoder.__call__` returns; the last two are None unless asked for.

    Attributes:
      final_BPD: final-normed hidden states, of all tokens (P = T) unless some are asked for.
      inputs_LBQD: the inputs of every block.
      cache: the keys and values so far.
    """

    final_BPD: jax.Array
    inputs_LBQD: jax.Array | None
    cache: Cache | None


class Linear(nnx.Module):
    """x @ kernel, plus a bias where the checkpoint has one, plus x @ a @ b where an adapter is given.

    A kernel of int8 stands beside the scale of each of its columns (`weights.quantise`).
    """

    def __init__(self, shape: tuple[int, ...], dtype, *, bias: bool = False, int8: bool = False, rngs: nnx.Rngs):
        if int8:
            self.kernel = nnx.Param(jnp.zeros(shape, jnp.int8))
            self.scale = nnx.Param(jnp.zeros((*shape[:-2], shape[-1]), jnp.float32))
        else:
            self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, dtype))
        if bias:
            self.bias = nnx.Param(jnp.zeros((*shape[:-2], shape[-1]), dtype))

    def __call__(self, x, adapter=None, kept=None):
        # XLA's CPU backend multiplies 2-D operands twice as fast as 3-D ones in the backward pass.
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.kernel[...].astype(x.dtype)
        if hasattr(self, "scale"):
            y = (y * self.scale[...]).astype(x.dtype)
        if hasattr(self, "bias"):
            y = y + self.bias[...]
        if adapter is not None:
            seen = rows if kept is None else rows * kept.reshape(rows.shape).astype(x.dtype)
            y = y + seen @ adapter["a"].astype(x.dtype) @ adapter["b"].astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


def _dropout_masks(dropout: Dropout | None, adapter: dict | None) -> dict[str, jax.Array]:
    """What dropout multiplies the input of each adapted projection by, [B, T, in]: 0, or what keeps the mean.

    16 bits decide on a number: the rate is met to 1 / 65,536. One draw serves all projections of a layer, for a draw
    is a long program.
    """
    if dropout is None or adapter is None:
        return {}
    widths = {path: adapter[path]["a"].shape[0] for path in PROJECTIONS if path in adapter}
    words = -(-sum(widths.values()) // 2)

    def draw(number: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(dropout.key, number), (words,), jnp.uint32)

    B, T = dropout.dropout_ids_BT.shape
    bits_BTW = jax.lax.bitcast_convert_type(jax.vmap(draw)(dropout.dropout_ids_BT.reshape(-1)), jnp.uint16).reshape(
        B, T, -1
    )
    ends = itertools.accumulate(widths.values())
    kept = (bits_BTW >= round(dropout.rate * 2**16)) / (1 - dropout.rate)
    return {path: kept[..., end - width : end] for (path, width), end in zip(widths.items(), ends, strict=True)}


class RMSNorm(nnx.Module):
    def __init__(self, shape: tuple[int, ...], dtype, epsilon: float):
        self.weight = nnx.Param(jnp.ones(shape, dtype))
        self.epsilon = epsilon

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return scale_rows(x32, scale).astype(x.dtype) * self.weight[...]


class Attention(nnx.Module):
    def __init__(self, c: DecoderConfig, dtype, int8: bool, mesh: Mesh | None, rngs: nnx.Rngs):
        def linear(rows, columns):
            return Linear((c.layers, rows, columns), dtype, bias=c.attention_bias, int8=int8, rngs=rngs)

        self.q_proj = linear(c.width, c.heads * c.head_width)
        self.k_proj = linear(c.width, c.kv_heads * c.head_width)
        self.v_proj = linear(c.width, c.kv_heads * c.head_width)
        self.o_proj = linear(c.heads * c.head_width, c.width)
        self.head_width = c.head_width
        self.mesh = mesh

    def __call__(self, x_BTD, angles, mask_BTS, packing, adapted, prefix, kv, index):
        def heads(name):
            y_BTD = adapted(self, name, x_BTD)
            if device_of(self.mesh).platform == "tpu":
                # Or the compiler takes the kernels transposed, and holds a transposed copy of those of all layers.
                y_BTD = jax.lax.optimization_barrier(y_BTD)
            return y_BTD.reshape(*x_BTD.shape[:2], -1, self.head_width)

        q_BTNH, k_BTKH, v_BTKH = rotate(heads("q_proj"), *angles), rotate(heads("k_proj"), *angles), heads("v_proj")
        own = heads_first(k_BTKH)[:, :, :, 0], heads_first(v_BTKH)[:, :, :, 0]
        if kv is not None:
            own = tuple(
                jax.lax.dynamic_update_slice_in_dim(held_KBSH, new_KBTH.astype(held_KBSH.dtype), index, axis=2)
                for held_KBSH, new_KBTH in zip(kv, own, strict=True)
            )
        before = None if prefix is None else Before(*(read_KCH[:, None] for read_KCH in prefix))
        if mask_BTS is None:
            mixed_BTNH = causal_attention(q_BTNH, k_BTKH, v_BTKH, before, packing, self.mesh)
        else:
            mixed_BTNH = rows_first(attention(heads_first(q_BTNH, len(own[0])), *own, mask_BTS, before))
        return mixed_BTNH.reshape(*x_BTD.shape[:2], -1), own


class MLP(nnx.Module):
    def __init__(self, c: DecoderConfig, dtype, int8: bool, rngs: nnx.Rngs):
        def linear(rows, columns):
            return Linear((c.layers, rows, columns), dtype, bias=c.mlp_bias, int8=int8, rngs=rngs)

        self.gate_proj = linear(c.width, c.feed_forward)
        self.up_proj = linear(c.width, c.feed_forward)
        self.down_proj = linear(c.feed_forward, c.width)

    def __call__(self, x_BTD, adapted):
        gated = jax.nn.silu(adapted(self, "gate_proj", x_BTD)) * adapted(self, "up_proj", x_BTD)
        return adapted(self, "down_proj", gated)


class Block(nnx.Module):
    """One layer, or all of them stacked along the first axis: parameters are sliced before a call."""

    def __init__(self, c: DecoderConfig, dtype, int8: bool, mesh: Mesh | None, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm((c.layers, c.width), dtype, c.norm_epsilon)
        self.self_attn = Attention(c, dtype, int8, mesh, rngs)
        self.post_attention_layernorm = RMSNorm((c.layers, c.width), dtype, c.norm_epsilon)
        self.mlp = MLP(c, dtype, int8, rngs)

    def __call__(self, x_BTD, angles, mask_BTS, packing, adapter, dropout, prefix, kv, index, at_BP):
        kept = _dropout_masks(dropout, adapter)

        def adapted_in(room):
            def adapted(module, name, x):
                path = f"{room}.{name}"
                return getattr(module, name)(x, (adapter or {}).get(path), kept.get(path))

            return adapted

        attended, passed = adapted_in("self_attn"), adapted_in("mlp")
        mixed_BTD, kv = self.self_attn(
            self.input_layernorm(x_BTD), angles, mask_BTS, packing, attended, prefix, kv, index
        )
        if at_BP is not None:  # nothing further reads the other tokens
            # From whole rows: of mixed heads that lie over the tensor axis too, XLA's partitioner gathers wrong numbers
            # on a mesh of 2 x 2 x 2 (tests/test_meshes.py).
            wanted = (x_BTD, mixed_BTD, kept)
            x_BTD, mixed_BTD, kept = jax.tree.map(
                lambda x: gather_positions(on_mesh(x, self.self_attn.mesh), at_BP), wanted
            )
        x_BTD = x_BTD + attended(self.self_attn, "o_proj", mixed_BTD)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD), passed), kv


class Decoder(nnx.Module):
    """Llama 1, 2 and 3. Parameter paths are Hugging Face's, less the layer number (layers are stacked)."""

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
          int8: the blocks' kernels are quantised; embedding, head, norms and activations stay `dtype`.
          mesh: of the devices that compute; without one JAX's default device does.
        """
        self.config, self.mesh = config, mesh
        self.embed_tokens = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (config.vocab, config.width), dtype))
        self.layers = Block(config, dtype, int8, mesh, rngs)
        self.norm = RMSNorm((config.width,), dtype, config.norm_epsilon)
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
        inputs_at_BQ: jax.Array | None = None,
        final_at_BP: jax.Array | None = None,
        remat: str = "none",
        keep_cache: bool = False,
    ) -> Output:
        """One pass over tokens.

        Args:
          tokens_BT: token ids.
          positions_BT: rotary position of each token.
          mask_BTS: True where a token may look at a key; S counts the cache's slots, or all tokens. None: every token
            looks at its own past in its sequence; padding at a row's end is seen by nothing real.
          adapter: {projection: {"a": [L, in, R], "b": [L, R, out]}}, scaled (`lora.scaled_adapter`).
          dropout: on the adapter's inputs.
          cache: keys and values so far; the new ones are written into it.
          prefix: keys and values of what stands before every sequence; all tokens look at it.
          packing: of rows that hold several sequences.
          inputs_at_BQ: the positions at which the inputs of every block are wanted.
          final_at_BP: those at which the final states are; None: of all tokens.
          remat: what the backward pass computes anew: "none"; "full": each block, of which only the input is kept;
            "dots": each block but the products of its projections.
          keep_cache: return the keys and values also where no cache came in.
        """
        graph, layers = nnx.split(self.layers)
        angles = rope_angles(self.config.rope, self.config.head_width, positions_BT)
        x_BTD = on_mesh(self._embed(tokens_BT), self.mesh)
        keys_L = None if dropout is None else jax.random.split(dropout.key, self.config.layers)
        index = None if cache is None else cache.index
        keeps = keep_cache or cache is not None

        def layer(x_BTD, scanned, at_BP=None):
            params, adapter, key, prefix, kv = scanned
            drop = None if key is None else dropout._replace(key=key)
            inputs_BQD = None if inputs_at_BQ is None else gather_positions(x_BTD, inputs_at_BQ)
            block = nnx.merge(graph, params)
            x_BTD, kv = block(x_BTD, angles, mask_BTS, packing, adapter, drop, prefix, kv, index, at_BP)
            return on_mesh(x_BTD, self.mesh), (inputs_BQD, kv if keeps else None)

        kvs = None if cache is None else (cache.k_LKBSH, cache.v_LKBSH)
        scanned = (nnx.to_pure_dict(layers), adapter, keys_L, prefix, kvs)
        body = REMAT[remat](layer)
        if loops_over_layers(self.config, self.mesh):
            last = body if final_at_BP is None else REMAT[remat](functools.partial(layer, at_BP=final_at_BP))
            x_BPD, (inputs_L, kvs) = loop(body, last, x_BTD, scanned)
            inputs_LBQD = None if inputs_at_BQ is None else jnp.stack(inputs_L)
        else:
            # Written out beside the scan, a last layer of its own would be one more to compile, for little in a deep
            # model.
            x_BTD, (inputs_LBQD, kvs) = jax.lax.scan(body, x_BTD, scanned)
            x_BPD = x_BTD if final_at_BP is None else gather_positions(x_BTD, final_at_BP)
        if keeps:
            cache = Cache(*kvs, (0 if index is None else index) + tokens_BT.shape[1])
        return Output(self.norm(x_BPD), inputs_LBQD, cache)

    def read_prefix(self, prefix_C: jax.Array, adapter: dict | None) -> Prefix:
        """Reads tokens that many sequences begin with, once."""
        read = self(prefix_C[None], jnp.arange(prefix_C.shape[0])[None], adapter=adapter, keep_cache=True).cache
        # The row of these tokens, [.., K, 1, C, H].
        return Prefix(*jax.tree.map(lambda x: jnp.squeeze(x, -3), (read.k_LKBSH, read.v_LKBSH)))

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """Room for the keys and values of so many tokens."""
        c, dtype = self.config, self.embed_tokens[...].dtype
        shape = c.kv_heads, rows, slots, c.head_width

        def zeros(*layers: int) -> jax.Array:
            made = jnp.zeros((*layers, *shape), dtype)
            if self.mesh is None:
                return made
            return jax.lax.with_sharding_constraint(made, cache_sharding(rows, self.mesh, len(layers)))

        def room() -> jax.Array | list[jax.Array]:
            apart = loops_over_layers(c, self.mesh)
            return [zeros() for _ in range(c.layers)] if apart else zeros(c.layers)

        return Cache(room(), room(), jnp.zeros((), jnp.int32))

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        """The tokens' rows of the embedding, [B, T, D]."""
        x_BTD = jnp.take(self.embed_tokens[...], tokens_BT, axis=0)
        if self.mesh is None or self.mesh.size == 1 or rows_spec(tokens_BT.shape[0], self.mesh) is None:
            return x_BTD
        # First as the table has them, the width over fsdp: from there to whole rows is one exchange, which XLA does not
        # find by itself on all meshes.
        return jax.lax.with_sharding_constraint(x_BTD, NamedSharding(self.mesh, P("data", None, "fsdp")))

    def head(self) -> jax.Array:
        """What turns final-normed hidden states into logits, [D, V]."""
        return self.embed_tokens[...].T if self.config.tied_embeddings else self.lm_head.kernel[...]

    def logits(self, final_BPD: jax.Array) -> jax.Array:
        """Next-token logits [B, P, V] in float32 from final-normed hidden states."""
        return logits(final_BPD, self.head())


def logits(final_BPD: jax.Array, head_DV: jax.Array) -> jax.Array:
    """Next-token logits [B, P, V] in float32 from final-normed hidden states and a `Decoder.head`."""
    return jnp.matmul(final_BPD, head_DV, preferred_element_type=jnp.float32)


def on_mesh(x_BTD: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Rows over the mesh, all else whole: then kernels are gathered layer by layer, and activations stay."""
    if mesh is None or mesh.size == 1:
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, NamedSharding(mesh, P(rows_spec(x_BTD.shape[0], mesh))))


def gather_positions(x_BTD: jax.Array, at_BP: jax.Array) -> jax.Array:
    """Rows of `x_BTD` at the positions `at_BP` of each sequence, [B, P, D]."""
    return jnp.take_along_axis(x_BTD, at_BP[..., None], axis=1)
