"""Assigns the axes of parameters to the axes of the mesh."""

import re
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig

# First match wins; a path without a match is an error. The first axis of layer parameters is the layers.
PARAM_RULES = (
    (r"embed_tokens", P("tensor", "fsdp")),
    (r"lm_head\.kernel", P("fsdp", "tensor")),
    (r"layers\..*\.(q|k|v|gate|up)_proj\.kernel", P(None, "fsdp", "tensor")),
    (r"layers\..*\.(o|down)_proj\.kernel", P(None, "tensor", "fsdp")),
    (r"layers\..*\.(q|k|v|gate|up)_proj\.(bias|scale)", P(None, "tensor")),
    (r"layers\..*\.(o|down)_proj\.(bias|scale)", P(None, None)),
    (r"layers\.linear_attn\.in_proj_(qkv|z|b|a)\.kernel", P(None, "fsdp", "tensor")),
    (r"layers\.linear_attn\.in_proj_(qkv|z)\.scale", P(None, "tensor")),
    (r"layers\.linear_attn\.out_proj\.kernel", P(None, "tensor", "fsdp")),
    (r"layers\.linear_attn\.out_proj\.scale", P(None, None)),
    (r"layers\.linear_attn\.(conv_taps|dt_bias|a_log)", P()),
    (r"layer_embeddings\.table", P("tensor", "fsdp")),
    (r"layer_embeddings\.projection\.kernel", P("fsdp", "tensor")),
    (r"layers\.layer_embedding\.gate\.kernel", P(None, "fsdp", "tensor")),
    (r"layers\.layer_embedding\.gate\.scale", P(None, "tensor")),
    (r"layers\.layer_embedding\.projection\.kernel", P(None, "tensor", "fsdp")),
    (r"layers\.layer_embedding\.projection\.scale", P(None, None)),
    (r"layers\.scale", P()),
    (r"(.*[._])?norm\.weight", P()),
)


def check_mesh(mesh: Mesh, config: DecoderConfig) -> None:
    """Checks that the mesh divides what it splits: tensor splits heads and feed-forward, fsdp the width.

    Raises:
      UserError: an axis does not divide one of these sizes.
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    splits = {
        ("tensor", tensor): {
            "key-value heads": config.kv_heads,
            "feed-forward": config.feed_forward,
            "vocabulary": config.vocab,
        },
        ("fsdp", fsdp): {"width": config.width},
    }
    if config.global_attention is not None:
        splits["tensor", tensor]["key-value heads of layers without a window"] = config.global_attention.kv_heads
    if config.layer_embeddings is not None:
        splits["tensor", tensor]["numbers in the embeddings of a layer"] = config.layer_embeddings.width
    if config.delta_net is not None:
        splits["tensor", tensor] |= {
            "key heads of delta nets": config.delta_net.key_heads,
            "value heads of delta nets": config.delta_net.value_heads,
        }
    for (axis, size), numbers in splits.items():
        for name, number in numbers.items():
            if number % size:
                raise UserError(f"config.mesh.{axis} = {size} does not divide the model's {number} {name}")


def param_shardings(mesh: Mesh, params: dict[str, Any]) -> dict[str, Any]:
    """Returns a sharding for every parameter (or its shape), by `PARAM_RULES`.

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

    matched = {path: match(path, leaf.shape) for path, leaf in flatten_dict(params, sep=".").items()}
    return unflatten_dict(matched, sep=".")
