"""The decoder: a Llama in Flax NNX, its layers stacked and scanned.

Modules hold parameters only. `nnx.split` turns a decoder into (graphdef, tree of arrays) once, and all
transformations are JAX's own on the tree; `nnx.merge` joins the two inside a trace, where it costs nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rdjax.models.attention import attention, rope_angles, rotate
from rdjax.models.config import DecoderConfig

# The linear projections of a block, in the order that dropout keys are drawn.
PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

# On CPU the scan of a model this shallow is unrolled: a step takes a fifth less, because what the backward
# pass needs is no longer copied into one stacked array a layer at a time. A cache is for forward
# passes alone, and a scan compiles several times faster.
CPU_UNROLLED_LAYERS = 8


class Dropout(NamedTuple):
    """Dropout on the inputs of adapted projections: probability `rate`, one mask a projection and layer."""

    rate: float
    key: jax.Array


class Cache(NamedTuple):
    """Keys and values of all layers. New tokens are written from slot `index` on, in every row alike."""

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    index: jax.Array


class Output(NamedTuple):
    """What `Decoder.__call__` returns; the last two are None unless asked for."""

    final_BTD: jax.Array
    inputs_LBQD: jax.Array | None
    cache: Cache | None


class Linear(nnx.Module):
    """x @ kernel, plus a bias where the checkpoint has one, plus x @ a @ b where an adapter is given."""

    def __init__(self, shape: tuple[int, ...], dtype, *, bias: bool = False, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, dtype))
        if bias:
            self.bias = nnx.Param(jnp.zeros((*shape[:-2], shape[-1]), dtype))

    def __call__(self, x, adapter=None, dropout: Dropout | None = None):
        # XLA's CPU backend multiplies 2-D operands twice as fast as 3-D ones in the backward pass.
        y = (x.reshape(-1, x.shape[-1]) @ self.kernel[...]).reshape(*x.shape[:-1], -1)
        if hasattr(self, "bias"):
            y = y + self.bias[...]
        if adapter is not None:
            y = y + _drop(x, dropout) @ adapter["a"].astype(x.dtype) @ adapter["b"].astype(x.dtype)
        return y


def _drop(x, dropout: Dropout | None):
    if dropout is None:
        return x
    rows = jax.vmap(functools.partial(jax.random.fold_in, dropout.key))(jnp.arange(x.shape[0]))
    # A key a row: the mask of a token does not change when the batch is padded to more tokens or rows.
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - dropout.rate, x.shape[1:]))(rows)
    return jnp.where(keep, x / (1 - dropout.rate), 0)


class RMSNorm(nnx.Module):
    def __init__(self, shape: tuple[int, ...], dtype, epsilon: float):
        self.weight = nnx.Param(jnp.ones(shape, dtype))
        self.epsilon = epsilon

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * scale).astype(x.dtype) * self.weight[...]


class Attention(nnx.Module):
    def __init__(self, c: DecoderConfig, dtype, rngs: nnx.Rngs):
        def linear(rows, columns):
            return Linear((c.layers, rows, columns), dtype, bias=c.attention_bias, rngs=rngs)

        self.q_proj = linear(c.width, c.heads * c.head_width)
        self.k_proj = linear(c.width, c.kv_heads * c.head_width)
        self.v_proj = linear(c.width, c.kv_heads * c.head_width)
        self.o_proj = linear(c.heads * c.head_width, c.width)
        self.head_width = c.head_width

    def __call__(self, x_BTD, angles, mask_BTS, adapted, kv, index):
        def heads(name):
            return adapted(self, name, x_BTD).reshape(*x_BTD.shape[:2], -1, self.head_width)

        q_BTNH, k_BSKH, v_BSKH = rotate(heads("q_proj"), *angles), rotate(heads("k_proj"), *angles), heads("v_proj")
        if kv is not None:
            k_BSKH = jax.lax.dynamic_update_slice_in_dim(kv[0], k_BSKH.astype(kv[0].dtype), index, axis=1)
            v_BSKH = jax.lax.dynamic_update_slice_in_dim(kv[1], v_BSKH.astype(kv[1].dtype), index, axis=1)
            kv = (k_BSKH, v_BSKH)
        mixed = attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
        return adapted(self, "o_proj", mixed.reshape(*mixed.shape[:2], -1)), kv


class MLP(nnx.Module):
    def __init__(self, c: DecoderConfig, dtype, rngs: nnx.Rngs):
        def linear(rows, columns):
            return Linear((c.layers, rows, columns), dtype, bias=c.mlp_bias, rngs=rngs)

        self.gate_proj = linear(c.width, c.feed_forward)
        self.up_proj = linear(c.width, c.feed_forward)
        self.down_proj = linear(c.feed_forward, c.width)

    def __call__(self, x_BTD, adapted):
        gated = jax.nn.silu(adapted(self, "gate_proj", x_BTD)) * adapted(self, "up_proj", x_BTD)
        return adapted(self, "down_proj", gated)


class Block(nnx.Module):
    """One layer, or all of them stacked along the first axis: the scan slices parameters before a call."""

    def __init__(self, c: DecoderConfig, dtype, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm((c.layers, c.width), dtype, c.norm_epsilon)
        self.self_attn = Attention(c, dtype, rngs)
        self.post_attention_layernorm = RMSNorm((c.layers, c.width), dtype, c.norm_epsilon)
        self.mlp = MLP(c, dtype, rngs)

    def __call__(self, x_BTD, angles, mask_BTS, adapter, dropout, kv, index):
        def adapted_in(room):
            def adapted(module, name, x):
                path = f"{room}.{name}"
                drop = None
                if dropout is not None:
                    drop = Dropout(dropout.rate, jax.random.fold_in(dropout.key, PROJECTIONS.index(path)))
                return getattr(module, name)(x, (adapter or {}).get(path), drop)

            return adapted

        mixed, kv = self.self_attn(self.input_layernorm(x_BTD), angles, mask_BTS, adapted_in("self_attn"), kv, index)
        x_BTD = x_BTD + mixed
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD), adapted_in("mlp")), kv


class Decoder(nnx.Module):
    """Llama 1, 2 and 3. Parameter paths are Hugging Face's, less the layer number (layers are stacked)."""

    def __init__(self, config: DecoderConfig, dtype=jnp.float32, *, rngs: nnx.Rngs):
        self.config = config
        self.embed_tokens = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (config.vocab, config.width), dtype))
        self.layers = Block(config, dtype, rngs)
        self.norm = RMSNorm((config.width,), dtype, config.norm_epsilon)
        if not config.tied_embeddings:
            self.lm_head = Linear((config.width, config.vocab), dtype, rngs=rngs)

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        mask_BTS: jax.Array,
        *,
        adapter: dict | None = None,
        dropout: Dropout | None = None,
        cache: Cache | None = None,
        inputs_at_BQ: jax.Array | None = None,
        remat: bool = False,
    ) -> Output:
        """One pass over tokens.

        Args:
          tokens_BT: token ids.
          positions_BT: rotary position of each token.
          mask_BTS: True where a token may look at a key; with a cache, S counts the cache's slots.
          adapter: {projection: {"a": [L, in, R], "b": [L, R, out]}}, scaled (`lora.effective`).
          dropout: on the adapter's inputs.
          cache: keys and values so far; the new ones are written into it.
          inputs_at_BQ: the positions at which the inputs of every block are wanted.
          remat: recompute each block in the backward pass instead of keeping its activations.

        Returns:
          The final-normed hidden states of all tokens, the inputs of every block [L, B, Q, D], the cache.
        """
        graph, layers = nnx.split(self.layers)
        angles = rope_angles(self.config.rope, self.config.head_width, positions_BT)
        x_BTD = jnp.take(self.embed_tokens[...], tokens_BT, axis=0)
        keys_L = None if dropout is None else jax.random.split(dropout.key, self.config.layers)
        index = None if cache is None else cache.index

        def layer(x_BTD, scanned):
            params, adapter, key, kv = scanned
            drop = None if key is None else Dropout(dropout.rate, key)
            inputs_BQD = None if inputs_at_BQ is None else gather_positions(x_BTD, inputs_at_BQ)
            x_BTD, kv = nnx.merge(graph, params)(x_BTD, angles, mask_BTS, adapter, drop, kv, index)
            return x_BTD, (inputs_BQD, kv)

        kvs = None if cache is None else (cache.k_LBSKH, cache.v_LBSKH)
        scanned = (nnx.to_pure_dict(layers), adapter, keys_L, kvs)
        unroll = cache is None and self.config.layers <= CPU_UNROLLED_LAYERS and jax.default_backend() == "cpu"
        x_BTD, (inputs_LBQD, kvs) = jax.lax.scan(
            jax.checkpoint(layer) if remat else layer, x_BTD, scanned, unroll=unroll
        )
        if cache is not None:
            cache = Cache(*kvs, index + tokens_BT.shape[1])
        return Output(self.norm(x_BTD), inputs_LBQD, cache)

    def read_prefix(self, prefix_C: jax.Array, rows: int, room: int, adapter: dict | None) -> Cache:
        """Reads tokens that `rows` rows share, once: the cache of all rows, with `room` slots more. Forward only."""
        c, C = self.config, prefix_C.shape[0]
        empty = jnp.zeros((c.layers, 1, C, c.kv_heads, c.head_width), self.embed_tokens[...].dtype)
        read = Cache(empty, empty, jnp.zeros((), jnp.int32))
        if C:
            causal = jnp.tril(jnp.ones((1, C, C), bool))
            read = self(prefix_C[None], jnp.arange(C)[None], causal, adapter=adapter, cache=read).cache

        def spread(one_L1CKH: jax.Array) -> jax.Array:
            shared = jnp.broadcast_to(one_L1CKH, (c.layers, rows, *one_L1CKH.shape[2:]))
            return jnp.pad(shared, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0)))

        return Cache(spread(read.k_LBSKH), spread(read.v_LBSKH), read.index)

    def logits(self, final_BPD: jax.Array) -> jax.Array:
        """Next-token logits [B, P, V] in float32 from final-normed hidden states."""
        head_DV = self.embed_tokens[...].T if self.config.tied_embeddings else self.lm_head.kernel[...]
        return jnp.matmul(final_BPD, head_DV, preferred_element_type=jnp.float32)


def gather_positions(x_BTD: jax.Array, at_BP: jax.Array) -> jax.Array:
    """Rows of `x_BTD` at the positions `at_BP` of each sequence, [B, P, D]."""
    return jnp.take_along_axis(x_BTD, at_BP[..., None], axis=1)
