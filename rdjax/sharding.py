"""The device mesh, and which array axis lies on which mesh axis."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_dict

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.weights import flatten, unflatten

AXES = ("data", "fsdp", "tensor")

# First match wins; a path without a match is an error. Leading axes of layer parameters are the layers.
PARAM_RULES = (
    (r"embed_tokens", P("tensor", "fsdp")),
    (r"lm_head\.kernel", P("fsdp", "tensor")),
    (r"layers\..*\.(q|k|v|gate|up)_proj\.kernel", P(None, "fsdp", "tensor")),
    (r"layers\..*\.(o|down)_proj\.kernel", P(None, "tensor", "fsdp")),
    (r"layers\..*\.(q|k|v|gate|up)_proj\.(bias|scale)", P(None, "tensor")),
    (r"layers\..*\.(o|down)_proj\.(bias|scale)", P(None, None)),
    (r"(.*\.)?(norm|input_layernorm|post_attention_layernorm)\.weight", P()),
)

ROWS = P(("data", "fsdp"))


def make_mesh(sizes: config_dict.ConfigDict) -> Mesh:
    """A mesh of the first data * fsdp * tensor devices."""
    shape = tuple(sizes[axis] for axis in AXES)
    count, devices = int(np.prod(shape)), jax.devices()
    if count > len(devices):
        wanted = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True))
        raise UserError(
            f"config.mesh: {wanted} needs {count} devices; there are {len(devices)} ({devices[0].platform})"
        )
    return Mesh(np.array(devices[:count]).reshape(shape), AXES)


def check_mesh(mesh: Mesh, config: DecoderConfig) -> None:
    """The tensor axis splits heads, the others split widths; each must divide what it splits."""
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    splits = {
        ("tensor", tensor): {
            "key-value heads": config.kv_heads,
            "feed-forward": config.feed_forward,
            "vocabulary": config.vocab,
        },
        ("fsdp", fsdp): {"width": config.width},
    }
    for (axis, size), numbers in splits.items():
        for name, number in numbers.items():
            if number % size:
                raise UserError(f"config.mesh.{axis} = {size} does not divide the model's {number} {name}")


def param_shardings(mesh: Mesh, params: dict[str, Any]) -> dict[str, Any]:
    """A sharding for every parameter, by `PARAM_RULES`."""

    def match(path: str) -> NamedSharding:
        for pattern, spec in PARAM_RULES:
            if re.fullmatch(pattern, path):
                return NamedSharding(mesh, spec)
        raise ValueError(f"no partition rule covers the parameter {path}")

    return unflatten({path: match(path) for path in flatten(params)})


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all: adapters, optimizer state and scalars are small."""
    return NamedSharding(mesh, P())


def place_prefix(prompt: Sequence[int], length: int, mesh: Mesh) -> jax.Array | None:
    """The first `length` tokens of a prompt on the mesh, or None where there are none to leave out."""
    return jax.device_put(np.array(prompt[:length], np.int32), replicated(mesh)) if length else None


def rows_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Rows of a batch over data and fsdp; `leading` axes before the rows stay whole."""
    return NamedSharding(mesh, P(*(None,) * leading, *ROWS))


def row_multiple(mesh: Mesh) -> int:
    """Batches hold a multiple of this many rows (padding rows weigh nothing)."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
