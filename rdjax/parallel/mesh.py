"""The device mesh, and how batches lie on it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils  # no stable function lays a mesh over several slices or a described topology
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_dict

from rdjax.errors import UserError

AXES = ("data", "fsdp", "tensor")
INFERRED = -1  # the size of an axis that takes all devices that the others leave

ROWS = ("data", "fsdp")  # the axes that share out the rows of a batch


def mesh_shape(sizes: config_dict.ConfigDict, count: int) -> tuple[int, ...]:
    """The sizes of the axes on `count` devices, with the inferred one found.

    Raises:
      UserError: more than one axis is to be inferred, or the sizes do not suit the devices.
    """
    shape = [sizes[axis] for axis in AXES]
    wanted = _named(shape)
    if shape.count(INFERRED) > 1:
        raise UserError(f"config.mesh: {wanted}; accepted: at most one axis of {INFERRED}, which takes what is left")
    if INFERRED in shape:
        others = -int(np.prod(shape))
        if count % others:
            raise UserError(f"config.mesh: {wanted}: {others} do not divide the {count} devices")
        shape[shape.index(INFERRED)] = count // others
    return tuple(shape)


def _named(shape: Sequence[int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))


def make_mesh(sizes: config_dict.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of data * fsdp * tensor devices; where they come in several slices, "data" goes across them.

    Args:
      devices: those of a described topology; else this machine's, of which a single process may leave some idle.

    Raises:
      UserError: the sizes do not suit the devices.
    """
    there = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(sizes, len(there))
    count = int(np.prod(shape))
    exact = devices is not None or jax.process_count() > 1
    if count > len(there) or (exact and count < len(there)):
        raise UserError(
            f"config.mesh: {_named(shape)} needs {count} devices; there are {len(there)} ({there[0].platform})"
        )
    used = there[:count]
    slices = len({getattr(device, "slice_index", 0) for device in used})
    if used[0].platform != "tpu":
        return Mesh(np.array(used).reshape(shape), AXES)
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, used, allow_split_physical_axes=True), AXES)
    if shape[0] % slices:
        raise UserError(f"config.mesh.data = {shape[0]} is not a multiple of the {slices} slices, which it goes across")
    inner = (shape[0] // slices, *shape[1:])
    across = (slices, *(1,) * len(shape[1:]))
    return Mesh(mesh_utils.create_hybrid_device_mesh(inner, across, used, allow_split_physical_axes=True), AXES)


def device_of(mesh: Mesh | None) -> jax.Device:
    """One of what computes; without a mesh, what JAX takes by itself."""
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all: adapters, optimizer state and scalars are small."""
    return NamedSharding(mesh, P())


def put(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same on every process, on the mesh: each process gives its devices what they are to hold.

    Args:
      shardings: one, or a tree of them that the tree begins with.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(sharding: NamedSharding, leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(
        lambda sharding, branch: jax.tree.map(functools.partial(one, sharding), branch), shardings, tree
    )


def abstract_like(tree: Any, sharding: NamedSharding) -> Any:
    """Gives the shape, dtype and sharding of every array of a tree, to compile a program before the arrays exist."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def place_prefix(prompt: Sequence[int], length: int, mesh: Mesh) -> jax.Array | None:
    """The first `length` tokens of a prompt on the mesh, or None where there are none to leave out."""
    return put(np.array(prompt[:length], np.int32), replicated(mesh)) if length else None


def rows_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Rows of a batch over data and fsdp; `leading` axes before the rows stay whole."""
    return NamedSharding(mesh, P(*(None,) * leading, ROWS))


def row_multiple(mesh: Mesh) -> int:
    """Batches hold a multiple of this many rows (padding rows weigh nothing)."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def cache_sharding(rows: int, mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Of keys and values [K, B, S, H]: heads over tensor, rows as in batches; `leading` axes before stay whole."""
    return NamedSharding(mesh, P(*(None,) * leading, "tensor", rows_spec(rows, mesh)))


def rows_spec(rows: int, mesh: Mesh) -> tuple[str, ...] | None:
    """The mesh axes over which `rows` rows lie: `ROWS`, or none where they do not divide (a prefix is one row)."""
    return None if rows % row_multiple(mesh) else ROWS
