"""Rows of the weight table: names, shapes and slices, also of tensors that hold several parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from rdjax.models.families import registry
from rdjax.models.families.common import BASE_ROWS, FUSED_MLP, NORMS_BEFORE, Family
from rdjax.models.families.phi3 import FUSED_QKV
from rdjax.models.tensor_files import SINGLE
from rdjax.models.weight_table import Row, rows_of
from rdjax.models.weights import abstract_params, load_params, save_params
from tests.models import textbook
from tests.models.test_switches import PLAIN

(QKV,), (GATE_UP,) = FUSED_QKV, FUSED_MLP


def test_a_placeholder_stands_for_every_projection():
    template = Row("block.{layer}.{projection}.weight", ("layers.{projection}.kernel",), "transpose")
    norm = Row("norm.weight", ("norm.weight",))
    rows = rows_of([norm, template], ["layers.mlp.up_proj.kernel", "norm.weight", "layers.self_attn.q_proj.kernel"])
    assert [row.names(range(2)) for row in rows] == [
        ["block.0.mlp.up_proj.weight", "block.1.mlp.up_proj.weight"],
        ["norm.weight"],
        ["block.0.self_attn.q_proj.weight", "block.1.self_attn.q_proj.weight"],
    ]
    assert rows[2].paths == ("layers.self_attn.q_proj.kernel",)


def test_a_parameter_without_a_row_is_an_error():
    with pytest.raises(ValueError, match=r"layers\.moe\.router"):
        rows_of(BASE_ROWS, ["layers.moe.router"])


def test_the_first_row_that_holds_a_parameter_counts():
    paths = [*QKV.paths, "layers.self_attn.o_proj.kernel"]
    assert [row.tensor for row in rows_of([QKV, *BASE_ROWS], paths)] == [
        QKV.tensor,
        "model.layers.{layer}.self_attn.o_proj.weight",
    ]


def test_parts_of_a_fused_tensor_are_found():
    """The rows of the tensor that one device needs of one parameter."""
    shapes = [(4, 6), (4, 2), (4, 2)]
    parts = [np.random.RandomState(number).standard_normal(shape) for number, shape in enumerate(shapes)]
    tensor = QKV.to_tensor(parts)
    assert tensor.shape == QKV.tensor_shape(shapes) == (10, 4)
    index = (slice(1, 3), slice(None))
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(QKV.from_tensor(tensor[QKV.tensor_slices(shapes, number, index)]), part[index])


def test_a_family_with_fused_tensors_loads_what_it_saves(tmp_path, monkeypatch):
    """From one file onto eight devices, each of which reads its slices of the fused tensors."""
    family = Family(None, (QKV, GATE_UP, *BASE_ROWS, *NORMS_BEFORE))
    monkeypatch.setitem(registry.FAMILIES, "fused", family)
    config = dataclasses.replace(PLAIN, family="fused")
    params = textbook.random_params(config)
    save_params(tmp_path, config, params, np.float32)
    saved = load_file(tmp_path / SINGLE)
    assert saved["model.layers.3.self_attn.qkv_proj.weight"].shape == (64 + 32 + 32, 32)
    assert saved["model.layers.0.mlp.gate_up_proj.weight"].shape == (96, 32)
    assert not [name for name in saved if "q_proj" in name or ("up_proj.weight" in name and "gate_up" not in name)]
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("layer", "row", "column"))
    axes = {1: (), 2: ("row", "column"), 3: ("layer", "row", "column")}
    shardings = jax.tree.map(
        lambda leaf: NamedSharding(mesh, PartitionSpec(*axes[leaf.ndim])), abstract_params(config, jnp.float32)[1]
    )
    loaded = load_params(tmp_path, config, jnp.float32, shardings)
    for path, leaf in flatten_dict(loaded, sep=".").items():
        np.testing.assert_array_equal(leaf, flatten_dict(params, sep=".")[path])
