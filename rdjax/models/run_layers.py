"""Runs the layers of a decoder one after the other, in either layout, whatever mixes their tokens."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rdjax.models.block import LayerInputs, Past, gather_positions
from rdjax.models.config import MIXERS, DecoderConfig
from rdjax.models.layers import is_unstacked, loop, split_layers

REMAT = {
    "none": lambda layer: layer,
    "full": jax.checkpoint,
    "dots": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}

# (x [B, T, D], what the layer reads, kind=...) -> (x, (the block's inputs or None, what it keeps or None)); `kind` is
# its index in `DecoderConfig.kinds`, and `at_BP` the positions of which the last layer returns x, if given.
RunBlock = Callable[..., tuple[jax.Array, tuple[jax.Array | None, Past | None]]]


class Parts(NamedTuple):
    """Holds what all layers read, stacked or as lists: what every layer has, and by mixer what some layers have."""

    common: LayerInputs
    own: dict[str, LayerInputs]


class Ran(NamedTuple):
    """Holds what the layers give.

    Attributes:
      x_BPD: the last layer's output, at the positions that were asked for.
      inputs_LBQD: the inputs of all blocks; None where they are not kept.
      pasts: by mixer, what its layers keep of the tokens, stacked or as lists.
    """

    x_BPD: jax.Array
    inputs_LBQD: jax.Array | None
    pasts: dict[str, Past | None]


def parts_of(
    config: DecoderConfig,
    params: dict[str, Any],
    adapter: dict | None,
    dropout_keys: jax.Array | None,
    prefixes: dict[str, Past | None],
    caches: dict[str, Past | None],
) -> Parts:
    """Returns what all layers read.

    Args:
      prefixes, caches: by mixer.
    """

    def adapted(wanted: str | None) -> dict | None:
        if adapter is None:
            return None
        parts = {path: path.split(".")[0] for path in adapter}
        return {path: ab for path, ab in adapter.items() if (parts[path] if parts[path] in MIXERS else None) == wanted}

    common = {name: part for name, part in params.items() if name not in MIXERS}
    return Parts(
        LayerInputs(common, None, adapted(None), dropout_keys, None, None),
        {
            mixer: LayerInputs({mixer: params[mixer]}, None, adapted(mixer), None, prefixes[mixer], caches[mixer])
            for mixer in config.mixers
        },
    )


def run_layers(
    config: DecoderConfig, run_block: RunBlock, x_BTD: jax.Array, parts: Parts, at_BP: jax.Array | None, remat: str
) -> Ran:
    """Runs all layers.

    Args:
      at_BP: positions at which to return the last layer's output; None: all.
      remat: a key of `REMAT`.
    """
    kinds = [config.kinds.index(config.kind_of(layer)) for layer in range(config.layers)]
    if is_unstacked(parts.common.params):
        return _loop(config, kinds, run_block, x_BTD, parts, at_BP, remat)
    scan = _scan if len(config.mixers) == 1 else _scan_periods
    ran = scan(config, kinds, run_block, x_BTD, parts, remat)
    # A last layer for some positions alone would have to be compiled beside the scan, and saves little.
    return ran if at_BP is None else ran._replace(x_BPD=gather_positions(ran.x_BPD, at_BP))


def _loop(config, kinds, run_block, x_BTD, parts, at_BP, remat) -> Ran:
    """Runs unstacked layers."""
    parts = split_layers(parts)
    runs = {kind: REMAT[remat](functools.partial(run_block, kind=kind)) for kind in set(kinds)}
    functions = [runs[kind] for kind in kinds]
    if at_BP is not None:
        functions[-1] = REMAT[remat](functools.partial(run_block, kind=kinds[-1], at_BP=at_BP))
    x_BPD, results = loop(functions, x_BTD, [_inputs_of(config, parts, layer) for layer in range(config.layers)])
    inputs_L, pasts_L = zip(*results, strict=True)
    pasts = {
        mixer: jax.tree.map(lambda *layers: [*layers], *(pasts_L[layer] for layer in config.layers_of(mixer)))
        for mixer in config.mixers
    }
    return Ran(x_BPD, None if inputs_L[0] is None else jnp.stack(inputs_L), pasts)


def _scan(config, kinds, run_block, x_BTD, parts, remat) -> Ran:
    """Runs stacked layers that mix tokens in one way."""
    (mixer,) = config.mixers
    layers = _join(parts.common, parts.own[mixer])
    if len(set(kinds)) == 1:
        body = functools.partial(run_block, kind=0)
    else:
        layers = layers._replace(kind=jnp.array(kinds, jnp.int32))

        def body(x_BTD, layer: LayerInputs):
            return run_block(x_BTD, layer, layer.kind)

    x_BTD, (inputs_LBQD, pasts) = jax.lax.scan(REMAT[remat](body), x_BTD, layers)
    return Ran(x_BTD, inputs_LBQD, {mixer: pasts})


def _scan_periods(config, kinds, run_block, x_BTD, parts, remat) -> Ran:
    """Runs stacked layers of several mixers, a period of the pattern at a time."""
    L = config.layers
    period = next(p for p in range(1, L + 1) if L % p == 0 and kinds == kinds[:p] * (L // p))
    one = dataclasses.replace(config, layers=period)
    runs = {kind: REMAT[remat](functools.partial(run_block, kind=kind)) for kind in set(kinds)}

    def body(x_BTD, parts: Parts):
        results = []
        for layer in range(period):
            x_BTD, result = runs[kinds[layer]](x_BTD, _inputs_of(one, parts, layer))
            results.append(result)
        inputs, pasts = zip(*results, strict=True)
        return x_BTD, (_stack(inputs), {m: _stack([pasts[layer] for layer in one.layers_of(m)]) for m in parts.own})

    def fold(x: jax.Array) -> jax.Array:
        return x.reshape(L // period, -1, *x.shape[1:])

    x_BTD, results = jax.lax.scan(body, x_BTD, jax.tree.map(fold, parts))
    return Ran(x_BTD, *jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results))


def _inputs_of(config: DecoderConfig, parts: Parts, layer: int) -> LayerInputs:
    """Returns what one layer reads."""
    mixer = config.kind_of(layer).mixer
    common, own = _take(parts.common, layer), _take(parts.own[mixer], config.layers_of(mixer).index(layer))
    return _join(common, own)


def _take(tree: Any, number: int) -> Any:
    """Returns one entry of all stacked arrays or lists of a tree."""
    return jax.tree.map(operator.itemgetter(number), tree, is_leaf=lambda node: isinstance(node, list))


def _join(common: LayerInputs, own: LayerInputs) -> LayerInputs:
    """Joins what a layer has as every layer with what it has by its mixer."""
    adapter = None if common.adapter is None else common.adapter | own.adapter
    return own._replace(params=common.params | own.params, adapter=adapter, dropout_key=common.dropout_key)


def _stack(trees: Any) -> Any:
    """Stacks the arrays of equal trees."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
