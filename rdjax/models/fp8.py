"""Reads checkpoints with weights in FP8 (E4M3) and scales, as Qwen, DeepSeek and Mistral publish them.

A weight is the stored number times the scale of its block; one block may be a whole tensor, or a row.
"""

from typing import Any

import numpy as np

from rdjax.errors import UserError
from rdjax.models.tensor_files import TensorFile, TensorReader

SCALE_SUFFIXES = ("_scale_inv", "_scale")  # behind the name of a weight: of quant_method fp8, and compressed-tensors
# Of kernels and key-value caches in FP8; not read.
ACTIVATION_SCALES = (".activation_scale", ".input_scale", ".output_scale", ".k_scale", ".v_scale", ".kv_scale")
ACCEPTED = "fp8, compressed-tensors with 8-bit float weights, or no quantization_config"


def read_block(fields: dict[str, Any], where: str) -> tuple[int, int] | None:
    """Returns the block of weights that share a scale: [out, in]; None: as the shapes of the scales say.

    Raises:
      UserError: `quantization_config` describes another quantisation.
    """
    quantisation = fields.get("quantization_config") or {}
    method = quantisation.get("quant_method")
    if not quantisation:
        return None
    if method == "fp8" and quantisation.get("scale_fmt", "float") == "float":
        block = quantisation.get("weight_block_size", (128, 128))
        return None if block is None else tuple(block)
    groups = (quantisation.get("config_groups") or {}).values()
    weights = [group.get("weights") or {} for group in groups]
    if method == "compressed-tensors" and weights and all(map(_is_fp8, weights)):
        blocks = list(map(_block_of, weights))
        if any(block != blocks[0] for block in blocks):
            raise UserError(f"{where}: quantization_config.config_groups share scales differently; accepted: one way")
        return blocks[0]
    raise UserError(f"{where}: quantization_config.quant_method {method!r} is not supported; accepted: {ACCEPTED}")


def _is_fp8(weights: dict[str, Any]) -> bool:
    return weights.get("num_bits") == 8 and weights.get("type") == "float"


def _block_of(weights: dict[str, Any]) -> tuple[int, int] | None:
    """Returns the numbers that share a scale in compressed-tensors: [out, in]; None: a row, or the whole tensor."""
    if weights.get("strategy") == "group":
        return 1, weights["group_size"]
    block = weights.get("block_structure")
    return None if block is None else tuple(block)


def scale_name(name: str, tensors: dict[str, TensorFile]) -> str | None:
    """Returns the name of the tensor with the scales of a weight, if there is one."""
    return next((name + suffix for suffix in SCALE_SUFFIXES if name + suffix in tensors), None)


def is_scale(name: str, tensors: dict[str, TensorFile]) -> bool:
    """Tells whether a tensor holds the scales of a weight, or of the inputs of a projection."""
    weights = (name.removesuffix(suffix) for suffix in SCALE_SUFFIXES if name.endswith(suffix))
    return name.endswith(ACTIVATION_SCALES) or any(weight in tensors for weight in weights)


def read_weight(
    reader: TensorReader, name: str, slices: tuple[slice, ...], block: tuple[int, int] | None
) -> np.ndarray:
    """Returns a part of a tensor, in float32 times its scales if it has any.

    Args:
      block: [out, in] numbers that share a scale; None: as the shape of the scales says.

    Raises:
      UserError: the tensor is in a format of few bits and has no scales, or others than its blocks ask for.
    """
    part, scales = reader.read(name, slices), scale_name(name, reader.tensors)
    if scales is None:
        if part.dtype.itemsize < 2 or np.issubdtype(part.dtype, np.integer):
            path, stored, _ = reader.tensors[name]
            raise UserError(f"{path}: {stored} is of {part.dtype} and has no scales; accepted: 16- or 32-bit floats")
        return part
    scale, shape = reader.read(scales), reader.tensors[name].shape
    path, stored, _ = reader.tensors[scales]
    if np.issubdtype(scale.dtype, np.integer):  # of MXFP8: exponents
        raise UserError(f"{path}: {stored} has scales of {scale.dtype}; accepted: floating-point scales")
    scale = scale.astype(np.float32)
    if scale.size == 1:
        return part.astype(np.float32) * scale.reshape(())
    sizes = block or tuple(size if count == 1 else 1 for size, count in zip(shape, scale.shape, strict=False))
    if scale.shape != tuple(-(-size // length) for size, length in zip(shape, sizes, strict=False)):
        raise UserError(
            f"{path}: {stored} has scales {list(scale.shape)} for weights {list(shape)}; accepted: one for each "
            + ("row, column or tensor" if block is None else f"block of {list(block)}")
        )
    rows, columns = (np.arange(size)[index] // length for size, index, length in zip(shape, slices, sizes, strict=True))
    return part.astype(np.float32) * scale[np.ix_(rows, columns)]
