"""Which axis of a parameter lies on which mesh axis."""

import re
from typing import Any

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.weights import flatten, unflatten

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
    """A sharding for every parameter (or its shape), by `PARAM_RULES`.

    Raises:
      ValueError: a parameter has no rule, or an axis of the mesh does not divide the dimension that it splits.
    """

    def match(path: str, shape: tuple[int, ...]) -> NamedSharding:
        spec = next((spec for pattern, spec in PARAM_RULES if re.fullmatch(pattern, path)), None)
        if spec is None:
            raise ValueError(f"no partition rule covers the parameter {path}")
        for number, axis in zip(shape, spec, strict=False):
            if axis is not None and number % mesh.shape[axis]:
                raise ValueError(f"mesh axis {axis} = {mesh.shape[axis]} does not divide {number} of {path} {shape}")
        return NamedSharding(mesh, spec)

    return unflatten({path: match(path, leaf.shape) for path, leaf in flatten(params).items()})
