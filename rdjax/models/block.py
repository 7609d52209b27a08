"""Defines a block of the decoder: attention and MLP, each with its norms and its residual sum, and what some add."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.models.config import MIXERS, MLPS, PARTS, DecoderConfig, LayerKind
from rdjax.models.delta_net import DeltaState, GatedDeltaNet
from rdjax.models.inputs import LayerInputs, PassInputs, Past, Shared
from rdjax.models.linear import Linear, Lora, layer_loras
from rdjax.models.norm import RMSNorm
from rdjax.models.rows import multiply
from rdjax.models.self_attention import Attention
from rdjax.parallel.mesh import rows_spec

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


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
