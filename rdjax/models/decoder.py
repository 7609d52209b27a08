"""The decoder: a Llama in Flax NNX, its layers stacked and scanned.

Modules hold parameters only. `nnx.split` turns a decoder into (graphdef, tree of arrays) once, and all
transformations are JAX's own on the tree; `nnx.merge` joins the two inside a trace, where it costs nothing.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.mesh import device_of, rows_spec
from rdjax.models.attention import attention, causal_attention, rope_angles, rotate
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


REMAT = {
    "none": lambda layer: layer,
    "full": jax.checkpoint,
    "dots": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


class Dropout(NamedTuple):
    """Dropout on the inputs of adapted projections: one mask a projection and layer.

    Attributes:
      rate: the probability that a number is dropped.
      key: of the step.
      draws_BT: a number for each token; wherever the token stands, its mask follows from this and the key.
    """

    rate: float
    key: jax.Array
    draws_BT: jax.Array


class Cache(NamedTuple):
    """Keys and values of all layers. New tokens are written from slot `index` on, in every row alike."""

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    index: jax.Array


class Prefix(NamedTuple):
    """Keys and values of tokens that all sequences begin with, as `Decoder.read_prefix` makes them."""

    k_LCKH: jax.Array
    v_LCKH: jax.Array


class Packing(NamedTuple):
    """Where the tokens of a row belong that holds several sequences behind one another, without padding between.

    All but attention works on the tokens as they lie; attention alone takes the sequences apart, and so is never
    asked about pairs of tokens from two of them.

    Attributes:
      pack_BT: of each token its place in the row's sequences laid out as [E * U]; -1 for padding.
      unpack_BEU: of each place of the E sequences of up to U tokens its token; -1 where the sequence is shorter.
    """

    pack_BT: jax.Array
    unpack_BEU: jax.Array


class Output(NamedTuple):
    """What `Decoder.__call__` returns; the last two are None unless asked for."""

    final_BTD: jax.Array
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

    def __call__(self, x, adapter=None, dropout: Dropout | None = None):
        # XLA's CPU backend multiplies 2-D operands twice as fast as 3-D ones in the backward pass.
        y = (x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)
        if hasattr(self, "scale"):
            y = (y * self.scale[...]).astype(x.dtype)
        if hasattr(self, "bias"):
            y = y + self.bias[...]
        if adapter is not None:
            y = y + _drop(x, dropout) @ adapter["a"].astype(x.dtype) @ adapter["b"].astype(x.dtype)
        return y


def _drop(x, dropout: Dropout | None):
    if dropout is None:
        return x

    def keep(draw: jax.Array) -> jax.Array:
        # 16 bits a number: half the work of `jax.random.bernoulli`, and the rate is met to 1 / 65,536.
        bits_D = jax.random.bits(jax.random.fold_in(dropout.key, draw), x.shape[-1:], jnp.uint16)
        return bits_D >= round(dropout.rate * 2**16)

    kept = jax.vmap(keep)(dropout.draws_BT.reshape(-1)).reshape(x.shape)
    return jnp.where(kept, x / (1 - dropout.rate), 0)


class RMSNorm(nnx.Module):
    def __init__(self, shape: tuple[int, ...], dtype, epsilon: float):
        self.weight = nnx.Param(jnp.ones(shape, dtype))
        self.epsilon = epsilon

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (x32 * scale).astype(x.dtype) * self.weight[...]


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

        q_BTNH, k_BSKH, v_BSKH = rotate(heads("q_proj"), *angles), rotate(heads("k_proj"), *angles), heads("v_proj")
        if packing is not None:
            q_BTNH, k_BSKH, v_BSKH = (unpack(x_BTKH, packing) for x_BTKH in (q_BTNH, k_BSKH, v_BSKH))
        if kv is not None:
            k_BSKH = jax.lax.dynamic_update_slice_in_dim(kv[0], k_BSKH.astype(kv[0].dtype), index, axis=1)
            v_BSKH = jax.lax.dynamic_update_slice_in_dim(kv[1], v_BSKH.astype(kv[1].dtype), index, axis=1)
        own = (k_BSKH, v_BSKH)
        if prefix is not None:
            k_BSKH, v_BSKH = (_behind(read_CKH, x_BSKH) for read_CKH, x_BSKH in zip(prefix, own, strict=True))
        if mask_BTS is None:
            mixed = causal_attention(q_BTNH, k_BSKH, v_BSKH, self.mesh)
        else:
            mixed = attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
        if packing is not None:
            mixed = pack(mixed, packing)
        return adapted(self, "o_proj", mixed.reshape(*mixed.shape[:2], -1)), own


def _behind(prefix_CKH: jax.Array, x_BSKH: jax.Array) -> jax.Array:
    """Keys or values behind those of the prefix, in every row."""
    read_BCKH = jnp.broadcast_to(prefix_CKH, (x_BSKH.shape[0], *prefix_CKH.shape))
    return jnp.concatenate([read_BCKH.astype(x_BSKH.dtype), x_BSKH], axis=1)


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
    """One layer, or all of them stacked along the first axis: the scan slices parameters before a call."""

    def __init__(self, c: DecoderConfig, dtype, int8: bool, mesh: Mesh | None, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm((c.layers, c.width), dtype, c.norm_epsilon)
        self.self_attn = Attention(c, dtype, int8, mesh, rngs)
        self.post_attention_layernorm = RMSNorm((c.layers, c.width), dtype, c.norm_epsilon)
        self.mlp = MLP(c, dtype, int8, rngs)

    def __call__(self, x_BTD, angles, mask_BTS, packing, adapter, dropout, prefix, kv, index):
        def adapted_in(room):
            def adapted(module, name, x):
                path = f"{room}.{name}"
                drop = None
                if dropout is not None:
                    drop = dropout._replace(key=jax.random.fold_in(dropout.key, PROJECTIONS.index(path)))
                return getattr(module, name)(x, (adapter or {}).get(path), drop)

            return adapted

        mixed, kv = self.self_attn(
            self.input_layernorm(x_BTD), angles, mask_BTS, packing, adapted_in("self_attn"), prefix, kv, index
        )
        x_BTD = x_BTD + mixed
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD), adapted_in("mlp")), kv


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
        remat: str = "none",
        keep_cache: bool = False,
    ) -> Output:
        """One pass over tokens.

        Args:
          tokens_BT: token ids.
          positions_BT: rotary position of each token.
          mask_BTS: True where a token may look at a key; S counts the cache's slots, or all tokens. None: every token
            looks at the prefix and at its own past in its sequence; padding at a row's end is seen by nothing real.
          adapter: {projection: {"a": [L, in, R], "b": [L, R, out]}}, scaled (`lora.effective`).
          dropout: on the adapter's inputs.
          cache: keys and values so far; the new ones are written into it.
          prefix: keys and values of what stands before every sequence.
          packing: of rows that hold several sequences.
          inputs_at_BQ: the positions at which the inputs of every block are wanted.
          remat: what the backward pass computes anew: "none"; "full": each block, of which only the input is kept;
            "dots": each block but the products of its projections.
          keep_cache: return the keys and values also where no cache came in.

        Returns:
          The final-normed hidden states of all tokens, the inputs of every block [L, B, Q, D], the cache.
        """
        graph, layers = nnx.split(self.layers)
        angles = rope_angles(self.config.rope, self.config.head_width, positions_BT)
        x_BTD = self._on_mesh(self._embed(tokens_BT))
        keys_L = None if dropout is None else jax.random.split(dropout.key, self.config.layers)
        index = None if cache is None else cache.index
        keeps = keep_cache or cache is not None

        def layer(x_BTD, scanned):
            params, adapter, key, prefix, kv = scanned
            drop = None if key is None else dropout._replace(key=key)
            inputs_BQD = None if inputs_at_BQ is None else gather_positions(x_BTD, inputs_at_BQ)
            block = nnx.merge(graph, params)
            x_BTD, kv = block(x_BTD, angles, mask_BTS, packing, adapter, drop, prefix, kv, index)
            return self._on_mesh(x_BTD), (inputs_BQD, kv if keeps else None)

        kvs = None if cache is None else (cache.k_LBSKH, cache.v_LBSKH)
        scanned = (nnx.to_pure_dict(layers), adapter, keys_L, prefix, kvs)
        unroll = cache is None and self.config.layers <= CPU_UNROLLED_LAYERS and device_of(self.mesh).platform == "cpu"
        x_BTD, (inputs_LBQD, kvs) = jax.lax.scan(REMAT[remat](layer), x_BTD, scanned, unroll=unroll)
        if keeps:
            cache = Cache(*kvs, (0 if index is None else index) + tokens_BT.shape[1])
        return Output(self.norm(x_BTD), inputs_LBQD, cache)

    def read_prefix(self, prefix_C: jax.Array, adapter: dict | None, remat: str = "none") -> Prefix:
        """Reads tokens that many sequences begin with, once."""
        c, C = self.config, prefix_C.shape[0]
        if not C:
            return Prefix(*(jnp.zeros((c.layers, 0, c.kv_heads, c.head_width), self.embed_tokens[...].dtype),) * 2)
        read = self(prefix_C[None], jnp.arange(C)[None], adapter=adapter, remat=remat, keep_cache=True).cache
        return Prefix(read.k_LBSKH[:, 0], read.v_LBSKH[:, 0])

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        """The tokens' rows of the embedding, [B, T, D]."""
        x_BTD = jnp.take(self.embed_tokens[...], tokens_BT, axis=0)
        if self.mesh is None or self.mesh.size == 1 or rows_spec(tokens_BT.shape[0], self.mesh) is None:
            return x_BTD
        # First as the table has them, the width over fsdp: from there to whole rows is one exchange, which XLA does not
        # find by itself on all meshes.
        return jax.lax.with_sharding_constraint(x_BTD, NamedSharding(self.mesh, P("data", None, "fsdp")))

    def _on_mesh(self, x_BTD: jax.Array) -> jax.Array:
        """Rows over the mesh, all else whole: then kernels are gathered layer by layer, and activations stay."""
        if self.mesh is None or self.mesh.size == 1:
            return x_BTD
        return jax.lax.with_sharding_constraint(
            x_BTD, NamedSharding(self.mesh, P(rows_spec(x_BTD.shape[0], self.mesh)))
        )

    def head(self) -> jax.Array:
        """What turns final-normed hidden states into logits, [D, V]."""
        return self.embed_tokens[...].T if self.config.tied_embeddings else self.lm_head.kernel[...]

    def logits(self, final_BPD: jax.Array) -> jax.Array:
        """Next-token logits [B, P, V] in float32 from final-normed hidden states."""
        return logits(final_BPD, self.head())


def logits(final_BPD: jax.Array, head_DV: jax.Array) -> jax.Array:
    """Next-token logits [B, P, V] in float32 from final-normed hidden states and a `Decoder.head`."""
    return jnp.matmul(final_BPD, head_DV, preferred_element_type=jnp.float32)


def gather_positions(x_BTD: jax.Array, at_BP: jax.Array) -> jax.Array:
    """Rows of `x_BTD` at the positions `at_BP` of each sequence, [B, P, D]."""
    return jnp.take_along_axis(x_BTD, at_BP[..., None], axis=1)


# Taking sequences out of their row and putting them back are each other's transpose, for padding shows zeros on both
# sides. Said so, both ways are gathers; the scatter of a gather's own gradient is far slower.


def _take_places(x_BTKH: jax.Array, at_BP: jax.Array) -> jax.Array:
    """Tokens at the given places of each row; zeros where a place is -1."""
    at_BP11 = at_BP[..., None, None]
    return jnp.where(at_BP11 >= 0, jnp.take_along_axis(x_BTKH, jnp.maximum(at_BP11, 0), axis=1), 0)


@jax.custom_vjp
def unpack(x_BTKH: jax.Array, packing: Packing) -> jax.Array:
    """The sequences of packed rows, [B * E, U, K, H]."""
    B, E, U = packing.unpack_BEU.shape
    return _take_places(x_BTKH, packing.unpack_BEU.reshape(B, E * U)).reshape(B * E, U, *x_BTKH.shape[2:])


@jax.custom_vjp
def pack(x_SUKH: jax.Array, packing: Packing) -> jax.Array:
    """Sequences [B * E, U, K, H] as the packed rows [B, T, K, H] they came from."""
    B, E, U = packing.unpack_BEU.shape
    return _take_places(x_SUKH.reshape(B, E * U, *x_SUKH.shape[2:]), packing.pack_BT)


unpack.defvjp(lambda x, packing: (unpack(x, packing), packing), lambda packing, g: (pack(g, packing), None))
pack.defvjp(lambda x, packing: (pack(x, packing), packing), lambda packing, g: (unpack(g, packing), None))
