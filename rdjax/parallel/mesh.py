"""Builds the device mesh, and places arrays and batches on it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils  # no stable function orders the devices of a TPU topology
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_dict

from rdjax.errors import UserError

AXES = ("data", "fsdp", "tensor")
INFERRED = -1  # an axis of this size takes the devices that the other axes leave

ROWS = ("data", "fsdp")  # the axes over which the rows of a batch are split


def mesh_shape(sizes: config_dict.ConfigDict, count: int) -> tuple[int, ...]:
    """Returns the sizes of the axes on `count` devices, with the inferred one computed.

    Raises:
      UserError: more than one axis is to be inferred, or the sizes do not suit the devices.
    """
    shape = [sizes[axis] for axis in AXES]
    described = _describe(shape)
    if shape.count(INFERRED) > 1:
        raise UserError(f"config.mesh: {described}; accepted: at most one axis of {INFERRED}, which takes what is left")
    if INFERRED in shape:
        others = -int(np.prod(shape))
        if count % others:
            raise UserError(f"config.mesh: {described}: {others} do not divide the {count} devices")
        shape[shape.index(INFERRED)] = count // others
    return tuple(shape)


def _describe(shape: Sequence[int]) -> str:
    """Writes a shape as "data 2 x fsdp 1 x tensor 1"."""
    return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))


def make_mesh(sizes: config_dict.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as a mesh of data x fsdp x tensor; with several TPU slices, "data" spans them.

    Args:
      devices: those of a topology that is only described; default: all devices of all processes, of which a single
        process may leave some idle.

    Raises:
      UserError: the sizes do not suit the devices.
    """
    available = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(sizes, len(available))
    count = int(np.prod(shape))
    exact = devices is not None or jax.process_count() > 1
    if count > len(available) or (exact and count < len(available)):
        raise UserError(
            f"config.mesh: {_describe(shape)} needs {count} devices; "
            f"there are {len(available)} ({available[0].platform})"
        )
    used = available[:count]
    slices = len({getattr(device, "slice_index", 0) for device in used})
    if used[0].platform != "tpu":
        return Mesh(np.array(used).reshape(shape), AXES)
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(shape, used, allow_split_physical_axes=True), AXES)
    if shape[0] % slices:
        raise UserError(f"config.mesh.data = {shape[0]} is not a multiple of the {slices} slices, which it goes across")
    within_slice = (shape[0] // slices, *shape[1:])
    over_slices = (slices, *(1,) * len(shape[1:]))
    devices = mesh_utils.create_hybrid_device_mesh(within_slice, over_slices, used, allow_split_physical_axes=True)
    return Mesh(devices, AXES)


def device_of(mesh: Mesh | None) -> jax.Device:
    """Returns one device of the mesh, to ask for its platform; without a mesh, JAX's default device."""
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of small arrays: every device has a whole copy."""
    return NamedSharding(mesh, P())


def put(tree: Any, shardings: Any) -> Any:
    """Places host arrays, the same on every process, on the mesh.

    Args:
      tree: of arrays.
      shardings: one for all arrays, or a tree of shardings that is a prefix of `tree`.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def place(sharding: NamedSharding, leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(
        lambda sharding, branch: jax.tree.map(functools.partial(place, sharding), branch), shardings, tree
    )


def abstract_like(tree: Any, sharding: NamedSharding) -> Any:
    """Describes every array of a tree by shape, dtype and sharding, to compile a program before the arrays exist."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def place_prefix(prompt: Sequence[int], length: int, mesh: Mesh) -> jax.Array | None:
    """Places the first `length` tokens of a prompt on the mesh; returns None where `length` is 0."""
    return put(np.array(prompt[:length], np.int32), replicated(mesh)) if length else None


def rows_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Returns the sharding of a batch: rows over data and fsdp, the `leading` axes before them whole."""
    return NamedSharding(mesh, P(*(None,) * leading, ROWS))


def row_multiple(mesh: Mesh) -> int:
    """Returns the number that the rows of a batch are padded to a multiple of (padding rows weigh nothing)."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def cache_sharding(rows: int, mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Returns the sharding of cached keys and values [K, B, S, H]: heads over tensor, rows as in batches.

    The `leading` axes before them stay whole.
    """
    return NamedSharding(mesh, P(*(None,) * leading, "tensor", rows_spec(rows, mesh)))


def rows_spec(rows: int, mesh: Mesh) -> tuple[str, ...] | None:
    """Returns the mesh axes over which `rows` rows are split: `ROWS`, or None where they do not divide evenly."""
    return None if rows % row_multiple(mesh) else ROWS
