"""Reading scaled weights: which numbers share a scale, and what is refused."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from rdjax.errors import UserError
from rdjax.models.fp8 import read_block, read_weight
from rdjax.models.tensor_files import TensorFile, TensorReader

WEIGHT, SCALE = "up_proj.weight", "up_proj.weight_scale"
SLICES = (slice(None), slice(None))


def reader_of(folder, weight, scale):
    path = folder / "model.safetensors"
    save_file({WEIGHT: weight, SCALE: scale}, path)
    return TensorReader({WEIGHT: TensorFile(path, WEIGHT, weight.shape), SCALE: TensorFile(path, SCALE, scale.shape)})


def compressed(**weights):
    group = {"weights": {"num_bits": 8, "type": "float", **weights}}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("weights", "scales"),
    [
        ({"strategy": "group", "group_size": 32}, (2, 4)),
        ({"strategy": "block", "block_structure": [1, 32]}, (2, 4)),
        ({"strategy": "channel"}, (2, 1)),
        ({"strategy": "tensor"}, (1,)),
    ],
)
def test_each_number_has_its_own_scale(tmp_path, weights, scales):
    """100 columns in groups of 32: the last group is smaller."""
    scale = np.arange(1, 1 + np.prod(scales), dtype=np.float32).reshape(scales)
    block = read_block({"quantization_config": compressed(**weights)}, "here")
    read = read_weight(reader_of(tmp_path, np.ones((2, 100), np.float16), scale), WEIGHT, SLICES, block)
    expected = np.repeat(scale, 32, axis=1)[:, :100] if scales == (2, 4) else np.broadcast_to(scale, (2, 100))
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("scale", "block", "named"),
    [
        (np.full((2, 4), 127, np.uint8), (1, 32), "scales of uint8; accepted: floating-point"),
        (np.ones((2, 1), np.float32), (1, 32), r"scales \[2, 1\] for weights \[2, 100\]; accepted: one for each block"),
        (np.ones((2, 4), np.float32), None, r"scales \[2, 4\] .*; accepted: one for each row, column or tensor"),
        (np.ones((2, 4, 1), np.float32), (1, 32), r"scales \[2, 4, 1\]"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path, scale, block, named):
    reader = reader_of(tmp_path, np.ones((2, 100), np.float16), scale)
    with pytest.raises(UserError, match=named):
        read_weight(reader, WEIGHT, SLICES, block)


def test_groups_that_share_scales_differently_are_refused():
    config = compressed(strategy="block", block_structure=[128, 128])
    config["config_groups"] |= {"group_1": compressed(strategy="channel")["config_groups"]["group_0"]}
    with pytest.raises(UserError, match="config_groups share scales differently"):
        read_block({"quantization_config": config}, "here")
