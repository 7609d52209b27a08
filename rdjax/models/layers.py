"""How the layers of a decoder lie and are run: stacked and scanned; of a shallow one on CPU apart, and looped over."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rdjax.models.config import DecoderConfig
from rdjax.parallel.mesh import device_of

# On CPU the layers of a model this shallow are looped over instead of scanned: what the backward pass needs is then not
# copied into one stacked array a layer at a time, nor the weights of a layer out of one (`unstack_layers`).
CPU_LOOPED_LAYERS = 8

Layer = Callable[[Any, Any], tuple[Any, Any]]


def loops_over_layers(config: DecoderConfig, mesh: Mesh | None) -> bool:
    """Whether a decoder on these devices loops over its layers, and takes their parameters best apart."""
    return config.layers <= CPU_LOOPED_LAYERS and device_of(mesh).platform == "cpu"


def unstack_layers(base: dict[str, Any], take: Callable[[Any, int], Any] = operator.getitem) -> dict[str, Any]:
    """The same parameters with a list of every layer's array in the place of a stacked one.

    Args:
      take: (stacked, layer) -> the layer's own.
    """

    def apart(stacked: Any) -> list[Any]:
        return [take(stacked, layer) for layer in range(stacked.shape[0])]

    return base | {"layers": jax.tree.map(apart, base["layers"])}


def stack_layers(base: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `unstack_layers`; parameters that are stacked stay so."""

    def stacked(node: Any) -> jax.Array:
        return jnp.stack(node) if _is_list(node) else node

    return base | {"layers": jax.tree.map(stacked, base["layers"], is_leaf=_is_list)}


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


@jax.custom_vjp
def _unstack(x: jax.Array) -> list[jax.Array]:
    """The parts along the first axis; their gradients are stacked, where JAX's own would pad and add them."""
    return [x[number] for number in range(x.shape[0])]


_unstack.defvjp(lambda x: (_unstack(x), None), lambda _, g: (jnp.stack(g),))


def loop(layer: Layer, last: Layer, x: Any, scanned: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` written out: lists of the layers' arrays in, or stacked ones, and lists out.

    Args:
      layer, last: (what goes from layer to layer, the layer's own of `scanned`) -> (the same for the next, its result);
        the last layer may give something else.
    """
    scanned = jax.tree.map(lambda leaf: leaf if _is_list(leaf) else _unstack(leaf), scanned, is_leaf=_is_list)
    count = len(jax.tree.leaves(scanned, is_leaf=_is_list)[0])
    # Under a jit of its own a body is traced once, and not for every layer.
    runs, outs = [*[jax.jit(layer)] * (count - 1), jax.jit(last)], []
    for number, run in enumerate(runs):
        x, out = run(x, jax.tree.map(operator.itemgetter(number), scanned, is_leaf=_is_list))
        outs.append(out)
    return x, jax.tree.map(lambda *layers: [*layers], *outs)
