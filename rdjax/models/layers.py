"""Decides how the parameters of a decoder's layers are laid out, and runs the layers in that layout.

Stacked: one array for all layers, run by `jax.lax.scan`, which compiles one layer. Unstacked: a list with an array for
each layer, run by a loop, which compiles every layer. Unstacked layers are faster on CPUs, where a scan copies the
weights of each layer, its part of the key-value cache, and everything that its backward pass needs. Measured on two
busy cores (benchmarks/layouts.py): generation takes 20 to 60 % less time at any depth; a training step takes 10 to 25 %
less at 6 and 8 layers, and no less at 30.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.parallel.mesh import device_of

CPU_UNSTACKED_LAYERS = 8  # the deepest model whose training steps are worth compiling every layer, on CPUs

Params = dict[str, Any]
Layer = Callable[[Any, Any], tuple[Any, Any]]


def training_layout(base: Params, layers: int, mesh: Mesh) -> Params:
    """Returns stacked parameters (or their shapes) in the layout in which a run keeps them."""
    if layers > CPU_UNSTACKED_LAYERS or device_of(mesh).platform != "cpu":
        return base
    if isinstance(jax.tree.leaves(base)[0], jax.ShapeDtypeStruct):
        return unstack_layers(base, _layer_shape)
    return jax.jit(unstack_layers)(base)


def generation_layout(base: Params, mesh: Mesh) -> Params:
    """Returns parameters in the layout for generation; to be called inside its program.

    It copies stacked parameters once for all new tokens. Accelerators scan, and have no memory for a copy.
    """
    return base if is_unstacked(base) or device_of(mesh).platform != "cpu" else unstack_layers(base)


def unstack_layers(base: Params, take: Callable[[Any, int], Any] = operator.getitem) -> Params:
    """Returns the same parameters with a list of arrays, one a layer, for each stacked array.

    Args:
      take: (stacked array, layer) -> the layer's array.
    """

    def unstack(stacked: Any) -> list[Any]:
        return [take(stacked, layer) for layer in range(stacked.shape[0])]

    return base | {"layers": jax.tree.map(unstack, base["layers"])}


def _layer_shape(stacked: jax.ShapeDtypeStruct, layer: int) -> jax.ShapeDtypeStruct:
    """Returns the shape of one layer's array."""
    del layer
    sharding = NamedSharding(stacked.sharding.mesh, P(*stacked.sharding.spec[1:]))
    return jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype, sharding=sharding)


def stack_layers(base: Params) -> Params:
    """Returns the same parameters with stacked arrays; the inverse of `unstack_layers`."""

    def stack(node: Any) -> jax.Array:
        return jnp.stack(node) if _is_list(node) else node

    return base | {"layers": jax.tree.map(stack, base["layers"], is_leaf=_is_list)}


def is_unstacked(params: Params) -> bool:
    """Tells whether parameters are unstacked."""
    return any(map(_is_list, jax.tree.leaves(params, is_leaf=_is_list)))


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


@jax.custom_vjp
def _split(x: jax.Array) -> list[jax.Array]:
    """Splits a stacked array into those of its layers."""
    return [x[layer] for layer in range(x.shape[0])]


# JAX's own gradient pads that of each layer with zeros, and sums them all.
_split.defvjp(lambda x: (_split(x), None), lambda _, g_layers: (jnp.stack(g_layers),))


def split_layers(tree: Any) -> Any:
    """Returns a tree of stacked arrays and lists as one of lists, an entry for each layer."""
    return jax.tree.map(lambda leaf: leaf if _is_list(leaf) else _split(leaf), tree, is_leaf=_is_list)


def loop(layers: Sequence[Layer], x: Any, inputs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Runs layers one after the other, as `jax.lax.scan` would.

    Args:
      layers: (x, a layer's inputs) -> (x for the next layer, result). Equal functions are traced once.
      x: input of the first layer.
      inputs: of each layer.

    Returns:
      The output of the last layer, and the result of every layer.
    """
    compiled = {layer: jax.jit(layer) for layer in layers}  # under a jit of its own, a function is traced once
    results = []
    for layer, own in zip(layers, inputs, strict=True):
        x, result = compiled[layer](x, own)
        results.append(result)
    return x, results
