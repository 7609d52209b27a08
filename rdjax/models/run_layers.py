"""Runs the layers of a decoder one after the other, in either layout, whatever their parts are."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rdjax.models.block import gather_positions
from rdjax.models.config import PARTS, SHARING, DecoderConfig
from rdjax.models.inputs import LayerInputs, Past, Shared
from rdjax.models.layers import is_unstacked, loop, split_layers

REMAT = {
    "none": lambda layer: layer,
    "full": jax.checkpoint,
    "dots": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}

# (x [B, T, D], what the layer reads, kind=...) -> (x, (the block's inputs or None, what it keeps or None)); `kind` is
# its index in `DecoderConfig.kinds`; `at_BP`, if given, the positions of which the last layer returns x; and `source`
# the keys and values of another layer, for one that has none of its own.
RunBlock = Callable[..., tuple[jax.Array, tuple[jax.Array | None, Past | None]]]


class Parts(NamedTuple):
    """Holds what all layers read, stacked or as lists: what every layer has, and by part what some layers have."""

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


def parts_of(config: DecoderConfig, params: dict[str, Any], inputs: LayerInputs) -> Parts:
    """Divides what all layers read.

    Args:
      params: of all parts.
      inputs: of all layers, stacked; its prefix and cache by mixer, and its params are not read.
    """

    def adapted(part: str) -> dict | None:
        if inputs.adapter is None:
            return None
        return {path: ab for path, ab in inputs.adapter.items() if path.split(".")[0] == part}

    common = {name: part for name, part in params.items() if name not in PARTS}
    pasts = [past or {} for past in (inputs.prefix, inputs.cache)]
    return Parts(
        inputs._replace(params=common, adapter=None, prefix=None, cache=None),
        {
            part: LayerInputs(
                {part: params[part]}, None, None, adapted(part), None, *(past.get(part) for past in pasts)
            )
            for part in config.parts
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
    scan = _scan if config.alike else _scan_segments
    ran = scan(config, kinds, run_block, x_BTD, parts, remat)
    # A last layer for some positions alone would have to be compiled beside the scan, and saves little.
    return ran if at_BP is None else ran._replace(x_BPD=gather_positions(ran.x_BPD, at_BP))


def _loop(config, kinds, run_block, x_BTD, parts, at_BP, remat) -> Ran:
    """Runs unstacked layers."""
    parts = split_layers(parts)
    inputs_L, pasts = [], {}
    for begin, end in _segments(config):
        runs = _runs(config, run_block, kinds[begin:end], _sources(config, parts, pasts), remat)
        functions = [runs[kind] for kind in kinds[begin:end]]
        if at_BP is not None and end == config.layers:
            functions[-1] = functools.partial(functions[-1], at_BP=at_BP)
        x_BTD, results = loop(functions, x_BTD, [_inputs_of(config, parts, layer) for layer in range(begin, end)])
        inputs, pasts_L = zip(*results, strict=True)
        inputs_L += inputs
        for mixer in config.between(begin, end).mixers:
            own = [pasts_L[layer - begin] for layer in config.layers_of(mixer) if begin <= layer < end]
            if mixer not in SHARING:
                pasts[mixer] = jax.tree.map(lambda *layers: [*layers], *own)
    return Ran(x_BTD, None if inputs_L[0] is None else jnp.stack(inputs_L), pasts)


def _scan(config, kinds, run_block, x_BTD, parts, remat) -> Ran:
    """Runs stacked layers that all have the same parts."""
    layers = _join(parts.common, *parts.own.values())
    if len(set(kinds)) == 1:
        body = functools.partial(run_block, kind=0)
    else:
        layers = layers._replace(kind=jnp.array(kinds, jnp.int32))

        def body(x_BTD, layer: LayerInputs):
            return run_block(x_BTD, layer, layer.kind)

    x_BTD, (inputs_LBQD, pasts) = jax.lax.scan(REMAT[remat](body), x_BTD, layers)
    return Ran(x_BTD, inputs_LBQD, {config.mixers[0]: pasts})


def _scan_segments(config, kinds, run_block, x_BTD, parts, remat) -> Ran:
    """Runs stacked layers of several kinds: first those that have keys and values, then those that share them."""
    segments, pasts = [], {}
    for begin, end in _segments(config):
        runs = _runs(config, run_block, kinds[begin:end], _sources(config, parts, pasts), remat)
        own = config.between(begin, end)
        x_BTD, inputs_LBQD, more = _scan_periods(
            own, runs, kinds[begin:end], x_BTD, _between(config, parts, begin, end)
        )
        segments.append(inputs_LBQD)
        pasts |= more
    return Ran(x_BTD, None if segments[0] is None else jnp.concatenate(segments), pasts)


def _scan_periods(config, runs, kinds, x_BTD, parts) -> Ran:
    """Runs stacked layers, a period of the pattern at a time."""
    L = config.layers
    period = next(p for p in range(1, L + 1) if L % p == 0 and kinds == kinds[:p] * (L // p))
    one = config.between(0, period)

    def body(x_BTD, parts: Parts):
        results = []
        for layer in range(period):
            x_BTD, result = runs[kinds[layer]](x_BTD, _inputs_of(one, parts, layer))
            results.append(result)
        inputs, pasts = zip(*results, strict=True)
        mixers = [mixer for mixer in one.mixers if mixer not in SHARING]
        return x_BTD, (_stack(inputs), {m: _stack([pasts[layer] for layer in one.layers_of(m)]) for m in mixers})

    def fold(x: jax.Array) -> jax.Array:
        return x.reshape(L // period, -1, *x.shape[1:])

    x_BTD, results = jax.lax.scan(body, x_BTD, jax.tree.map(fold, parts))
    return Ran(x_BTD, *jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results))


def _segments(config: DecoderConfig) -> list[tuple[int, int]]:
    """Returns the first layer and the layer behind the last: of those with keys and values, and of those that share."""
    sharing = [layer for layer in range(config.layers) if config.kind_of(layer).mixer in SHARING]
    first = sharing[0] if sharing else config.layers
    return [(begin, end) for begin, end in ((0, first), (first, config.layers)) if begin < end]


def _runs(config, run_block, kinds, sources: dict[str, Shared], remat) -> dict[int, Callable]:
    """Returns a function for every kind of layer."""
    return {
        kind: REMAT[remat](
            functools.partial(run_block, kind=kind, source=sources.get(SHARING.get(config.kinds[kind].mixer)))
        )
        for kind in set(kinds)
    }


def _sources(config: DecoderConfig, parts: Parts, pasts: dict[str, Past]) -> dict[str, Shared]:
    """Returns by mixer the keys and values that later layers share: those of the last layer that has it."""
    shared = {SHARING[mixer] for mixer in config.mixers if mixer in SHARING} & pasts.keys()
    return {mixer: Shared(*(_take(past, -1) for past in (pasts[mixer], parts.own[mixer].prefix))) for mixer in shared}


def _between(config: DecoderConfig, parts: Parts, begin: int, end: int) -> Parts:
    """Returns what some of the layers read."""
    own = {}
    for part, inputs in parts.own.items():
        numbers = [number for number, layer in enumerate(config.layers_of(part)) if begin <= layer < end]
        if numbers:
            own[part] = jax.tree.map(operator.itemgetter(slice(numbers[0], numbers[-1] + 1)), inputs)
    return Parts(jax.tree.map(operator.itemgetter(slice(begin, end)), parts.common), own)


def _inputs_of(config: DecoderConfig, parts: Parts, layer: int) -> LayerInputs:
    """Returns what one layer reads."""
    own = [_take(parts.own[part], config.layers_of(part).index(layer)) for part in config.kind_of(layer).parts]
    return _join(_take(parts.common, layer), *own)


def _take(tree: Any, number: int) -> Any:
    """Returns one entry of all stacked arrays or lists of a tree."""
    return jax.tree.map(operator.itemgetter(number), tree, is_leaf=lambda node: isinstance(node, list))


def _join(common: LayerInputs, mixer: LayerInputs, mlp: LayerInputs) -> LayerInputs:
    """Joins what a layer has as every layer with what it has of its two parts."""
    adapter = None if mixer.adapter is None else mixer.adapter | mlp.adapter
    params = common.params | mixer.params | mlp.params
    return common._replace(params=params, adapter=adapter, prefix=mixer.prefix, cache=mixer.cache)


def _stack(trees: Any) -> Any:
    """Stacks the arrays of equal trees."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
