"""Defines the decoder in Flax NNX.

Modules hold parameters only. `nnx.split` turns a decoder into (graph definition, tree of arrays) once, and all
transformations are JAX's own on the tree; `nnx.merge` joins the two inside a trace, where it costs nothing.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.models.block import (
    Block,
    KindInputs,
    LayerInputs,
    PassInputs,
    gather_positions,
    on_mesh,
)
from rdjax.models.config import MIXERS, DecoderConfig
from rdjax.models.delta_net import DeltaState, empty_state
from rdjax.models.layers import is_unstacked, loop, split_layers
from rdjax.models.linear import Dropout, Linear
from rdjax.models.norm import RMSNorm
from rdjax.models.packing import Packing
from rdjax.models.rotary import rope_angles
from rdjax.parallel.mesh import cache_sharding, rows_spec

REMAT = {
    "none": lambda layer: layer,
    "full": jax.checkpoint,
    "dots": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


class Cache(NamedTuple):
    """Holds keys and values of all layers with attention. New tokens are written from slot `index` on in every row.

    Where layers are unstacked (`models.layers`), lists of L arrays take the place of stacked ones.

    Attributes:
      states: of all layers with a delta net, stacked likewise; None: there are none.
    """

    k_LKBSH: jax.Array | list[jax.Array]
    v_LKBSH: jax.Array | list[jax.Array]
    index: jax.Array
    states: DeltaState | None = None


class Prefix(NamedTuple):
    """Holds keys and values of tokens that all sequences begin with, from `Decoder.read_prefix`.

    Where layers are unstacked (`models.layers`), lists of L arrays take the place of stacked ones.

    Attributes:
      states: as in `Cache`, without an axis of rows.
    """

    k_LKCH: jax.Array | list[jax.Array]
    v_LKCH: jax.Array | list[jax.Array]
    states: DeltaState | None = None


class Parts(NamedTuple):
    """Holds what all layers read, stacked or as lists: what every layer has, and by mixer what some layers have."""

    common: LayerInputs
    own: dict[str, LayerInputs]


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
        mixers = self._mixers
        graphs = {mixer: nnx.split(self.layers.only(mixer) if len(mixers) > 1 else self.layers)[0] for mixer in mixers}
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

        def run_block(x_BTD, layer: LayerInputs, kind: int | jax.Array, at_BP=None):
            inputs_BQD = None if inputs_at_BQ is None else gather_positions(x_BTD, inputs_at_BQ)
            graph = graphs[self.config.kinds[kind].mixer if len(mixers) > 1 else mixers[0]]
            x_BTD, past = nnx.merge(graph, layer.params)(x_BTD, shared, layer, kind, at_BP)
            return on_mesh(x_BTD, self.mesh), (inputs_BQD, past if keeps_cache else None)

        keys = None if dropout is None else jax.random.split(dropout.key, self.config.layers)
        parts = self._parts(params, adapter, keys, prefix, cache)
        x_BTD = on_mesh(self._embed(tokens_BT), self.mesh)
        if is_unstacked(params):
            x_BPD, inputs_LBQD, pasts = self._loop(run_block, x_BTD, parts, final_at_BP, remat)
        else:
            scan = self._scan if len(mixers) == 1 else self._scan_periods
            x_BPD, inputs_LBQD, pasts = scan(run_block, x_BTD, parts, final_at_BP, remat)
        if keeps_cache:
            index = (0 if cache is None else cache.index) + tokens_BT.shape[1]
            cache = Cache(*pasts["self_attn"], index, pasts.get("linear_attn"))
        return Output(self.norm(x_BPD), inputs_LBQD, cache)

    @property
    def _mixers(self) -> tuple[str, ...]:
        """Returns the different mixers of the layers."""
        used = {kind.mixer for kind in self.config.kinds}
        return tuple(mixer for mixer in MIXERS if mixer in used)

    def _parts(
        self, params: dict, adapter: dict | None, keys: jax.Array | None, prefix: Prefix | None, cache: Cache | None
    ) -> Parts:
        """Returns what all layers read, by their mixers."""
        pasts = {"self_attn": [None if past is None else past[:2] for past in (prefix, cache)]}
        pasts["linear_attn"] = [None if past is None else past.states for past in (prefix, cache)]

        def adapted(wanted: str) -> dict | None:
            if adapter is None:
                return None
            part_of = {path: part if (part := path.split(".")[0]) in MIXERS else "" for path in adapter}
            return {path: ab for path, ab in adapter.items() if part_of[path] == wanted}

        common = {name: part for name, part in params.items() if name not in MIXERS}
        return Parts(
            LayerInputs(common, None, adapted(""), keys, None, None),
            {
                mixer: LayerInputs({mixer: params[mixer]}, None, adapted(mixer), None, *pasts[mixer])
                for mixer in self._mixers
            },
        )

    @property
    def _kind_numbers(self) -> list[int]:
        """Returns the index of each layer's kind."""
        return [self.config.kinds.index(self.config.kind_of(layer)) for layer in range(self.config.layers)]

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
                    C = jax.tree.leaves(prefix)[0].shape[-2]
                    inputs = inputs._replace(prefix_mask_BTC=_in_window(positions_BT, jnp.arange(C)[None], kind.window))
            all_kinds.append(inputs)
        return tuple(all_kinds)

    def _loop(self, run_block, x_BTD: jax.Array, parts: Parts, at_BP: jax.Array | None, remat: str):
        """Runs unstacked layers; returns the last one's output, the inputs of all, and by mixer what they keep."""
        c, kinds, parts = self.config, self._kind_numbers, split_layers(parts)
        runs = {kind: REMAT[remat](functools.partial(run_block, kind=kind)) for kind in set(kinds)}
        functions = [runs[kind] for kind in kinds]
        if at_BP is not None:
            functions[-1] = REMAT[remat](functools.partial(run_block, kind=kinds[-1], at_BP=at_BP))
        x_BPD, results = loop(functions, x_BTD, [_inputs_of(c, parts, layer) for layer in range(c.layers)])
        inputs_L, pasts_L = zip(*results, strict=True)
        pasts = {
            mixer: jax.tree.map(lambda *layers: [*layers], *(pasts_L[layer] for layer in c.layers_of(mixer)))
            for mixer in self._mixers
        }
        return x_BPD, None if inputs_L[0] is None else jnp.stack(inputs_L), pasts

    def _scan(self, run_block, x_BTD: jax.Array, parts: Parts, at_BP: jax.Array | None, remat: str):
        """Runs stacked layers that mix tokens in one way; returns what `_loop` returns."""
        kinds, (mixer,) = self._kind_numbers, self._mixers
        layers = _join(parts.common, parts.own[mixer])
        if len(set(kinds)) == 1:
            body = functools.partial(run_block, kind=0)
        else:
            layers = layers._replace(kind=jnp.array(kinds, jnp.int32))

            def body(x_BTD, layer: LayerInputs):
                return run_block(x_BTD, layer, layer.kind)

        x_BTD, (inputs_LBQD, pasts) = jax.lax.scan(REMAT[remat](body), x_BTD, layers)
        # A last layer for some positions alone would have to be compiled beside the scan, and saves little.
        return x_BTD if at_BP is None else gather_positions(x_BTD, at_BP), inputs_LBQD, {mixer: pasts}

    def _scan_periods(self, run_block, x_BTD: jax.Array, parts: Parts, at_BP: jax.Array | None, remat: str):
        """Runs stacked layers of several mixers, a period of the pattern at a time; returns what `_loop` returns."""
        c, kinds = self.config, self._kind_numbers
        period = next(p for p in range(1, c.layers + 1) if c.layers % p == 0 and kinds == kinds[:p] * (c.layers // p))
        one = dataclasses.replace(c, layers=period)
        runs = {kind: REMAT[remat](functools.partial(run_block, kind=kind)) for kind in set(kinds)}

        def body(x_BTD, parts: Parts):
            results = []
            for layer in range(period):
                x_BTD, result = runs[kinds[layer]](x_BTD, _inputs_of(one, parts, layer))
                results.append(result)
            inputs, pasts = zip(*results, strict=True)
            return x_BTD, (_stack(inputs), {m: _stack([pasts[layer] for layer in one.layers_of(m)]) for m in parts.own})

        def fold(x: jax.Array) -> jax.Array:
            return x.reshape(c.layers // period, -1, *x.shape[1:])

        x_BTD, results = jax.lax.scan(body, x_BTD, jax.tree.map(fold, parts))
        inputs_LBQD, pasts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
        return x_BTD if at_BP is None else gather_positions(x_BTD, at_BP), inputs_LBQD, pasts

    def read_prefix(self, prefix_C: jax.Array, adapter: dict | None) -> Prefix:
        """Returns the keys and values of tokens that many sequences begin with."""
        cache = self(prefix_C[None], jnp.arange(prefix_C.shape[0])[None], adapter=adapter, keep_cache=True).cache
        keys_values = jax.tree.map(lambda x: jnp.squeeze(x, -3), (cache.k_LKBSH, cache.v_LKBSH))  # [.., K, 1, C, H]
        return Prefix(*keys_values, map_states(lambda x, axis: jnp.squeeze(x, axis), cache.states))

    def empty_cache(self, rows: int, slots: int, prefix: Prefix | None = None) -> Cache:
        """Returns a cache of zeros for `slots` tokens in each row; delta nets begin with the states of the prefix."""
        c, dtype = self.config, self.embed_tokens[...].dtype
        unstacked = is_unstacked(nnx.to_pure_dict(nnx.split(self.layers)[1]))

        def zeros(*layers: int) -> jax.Array:
            x = jnp.zeros((*layers, c.kv_heads, rows, slots, c.head_width), dtype)
            if self.mesh is None:
                return x
            return jax.lax.with_sharding_constraint(x, cache_sharding(rows, self.mesh, len(layers)))

        def buffer() -> jax.Array | list[jax.Array]:
            layers = len(c.layers_of("self_attn"))
            return [zeros() for _ in range(layers)] if unstacked else zeros(layers)

        return Cache(buffer(), buffer(), jnp.zeros((), jnp.int32), self._first_states(rows, prefix, unstacked))

    def _first_states(self, rows: int, prefix: Prefix | None, unstacked: bool) -> DeltaState | None:
        """Returns the states of all delta nets before the first token of each row; None: there are no delta nets."""
        c = self.config
        if c.delta_net is None:
            return None
        if prefix is not None:
            return map_states(lambda x, axis: jnp.repeat(jnp.expand_dims(x, axis), rows, axis), prefix.states)
        layers, one = len(c.layers_of("linear_attn")), empty_state(c.delta_net, rows, self.embed_tokens[...].dtype)
        return jax.tree.map(lambda x: [x] * layers if unstacked else jnp.stack([x] * layers), one)

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


def _inputs_of(config: DecoderConfig, parts: Parts, layer: int) -> LayerInputs:
    """Returns what one layer reads."""
    mixer = config.kind_of(layer).mixer
    common, own = _take(parts.common, layer), _take(parts.own[mixer], config.layers_of(mixer).index(layer))
    return _join(common, own)


def _take(tree, number: int):
    """Returns one entry of all stacked arrays or lists of a tree."""
    return jax.tree.map(operator.itemgetter(number), tree, is_leaf=lambda node: isinstance(node, list))


def _join(common: LayerInputs, own: LayerInputs) -> LayerInputs:
    """Joins what a layer has as every layer with what it has by its mixer."""
    adapter = None if common.adapter is None else common.adapter | own.adapter
    return own._replace(params=common.params | own.params, adapter=adapter, dropout_key=common.dropout_key)


def _stack(trees):
    """Stacks the arrays of equal trees."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def map_states(change: Callable[[jax.Array, int], jax.Array], states: DeltaState | None) -> DeltaState | None:
    """Applies `change` (array, axis of rows) to the states of all delta nets; None where there are none.

    The axis is that of rows in [.., B, Z, X] and [.., B, I, H, J], or where it belongs in arrays without it.
    """
    if states is None:
        return None
    axes = DeltaState(-3, -4)
    return DeltaState(
        *(jax.tree.map(lambda x, axis=axis: change(x, axis), part) for part, axis in zip(states, axes, strict=True))
    )


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
