"""Sharded over eight fake devices equals one device; every parameter has its rule."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_dict

from rdjax.errors import UserError
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.families.registry import decoder_config_from_hf
from rdjax.models.layers import stack_layers
from rdjax.models.load import load_model
from rdjax.models.sharding import check_mesh, param_shardings
from rdjax.models.weights import abstract_params
from rdjax.parallel.mesh import AXES, make_mesh, replicated, row_multiple, rows_sharding
from tests import tiny
from tests.distillation.case import (
    DISTILL,
    OBJECTIVES,
    SHARED,
    Case,
    assert_close,
    loss_and_grad,
    make_update,
    random_adapter,
    random_pairs,
)


def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1):
    return make_mesh(config_dict.ConfigDict({"data": data, "fsdp": fsdp, "tensor": tensor}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama2")
    tiny.write_random_checkpoint(path, tiny.LLAMA2, shards=2)
    return tiny.write_tokenizer(path)


def sharded_loss(folder, devices, objective, layout=dict):
    model = load_model(str(folder), "float32", devices)
    adapter = jax.device_put(random_adapter(model.config), replicated(devices))
    batch = jax.device_put(
        make_update(random_pairs(8), SHARED, rows=row_multiple(devices)), rows_sharding(devices, leading=1)
    )
    return loss_and_grad(Case(model.graph, layout(model.base), model.config), adapter, batch, objective)


@pytest.mark.parametrize(
    ("kind", "meshes"), [("distill", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)]), ("tune_without_rule", [(1, 4, 2)])]
)
def test_sharded_loss_and_gradients_equal_unsharded(folder, kind, meshes):
    objective = OBJECTIVES[kind]
    alone = sharded_loss(folder, mesh(), objective)
    for sizes in meshes:
        assert_close(sharded_loss(folder, mesh(*sizes), objective), alone, 1e-5)


@pytest.mark.parametrize("name", ["qwen3_5", "gemma4"])
def test_layers_of_several_kinds_give_the_same_on_eight_devices(tmp_path, name):
    """Loss and gradients, of layers that are looped over (as runs have shallow ones on CPUs) and scanned."""
    tiny.write_random_checkpoint(tmp_path, tiny.CONFIGS[name], shards=2)
    tiny.write_tokenizer(tmp_path)
    alone = sharded_loss(tmp_path, mesh(), DISTILL)
    for layout in (dict, stack_layers):
        assert_close(sharded_loss(tmp_path, mesh(2, 2, 2), DISTILL, layout), alone, 5e-5)


def test_no_array_is_copied_whole_to_be_sharded_anew(folder, capfd):
    """XLA says so on standard error where it finds no exchange between two shardings."""
    sharded_loss(folder, mesh(2, 2, 2), DISTILL)
    assert "full rematerialization" not in capfd.readouterr().err
    copied_whole(mesh(2, 2, 2))
    assert "full rematerialization" in capfd.readouterr().err, "XLA still says so"


def copied_whole(devices):
    """Compiles a program between two shardings that XLA knows no exchange for."""
    rows, columns = (NamedSharding(devices, P(*axes)) for axes in ((AXES, None), (None, AXES[:2])))

    @jax.jit
    def square(x):
        x = jax.lax.with_sharding_constraint(x, rows)
        return jax.lax.with_sharding_constraint(x @ x, columns)

    square.lower(jax.ShapeDtypeStruct((16, 16), np.float32)).compile()


@pytest.mark.parametrize("head", [[], tiny.random_tokens(21).tolist()], ids=["unlike", "one head"])
def test_sharded_generation_equals_unsharded(folder, head):
    prompts = [head + tiny.random_tokens(length, seed=length).tolist() for length in (3, 9, 40, 5, 12)]
    answers = []
    for devices in (mesh(), mesh(1, 4, 2)):
        model = load_model(str(folder), "float32", devices)
        adapter = jax.device_put(random_adapter(model.config), replicated(devices))
        answers.append(generate(model, adapter, 0.5, prompts, Decoding(6), batch_size=5))
    assert answers[0] == answers[1]


def test_parameters_are_really_split(folder):
    model = load_model(str(folder), "float32", mesh(1, 4, 2))
    kernel = model.base["layers"]["self_attn"]["q_proj"]["kernel"]
    assert len(kernel) == 2 and kernel[1].addressable_shards[0].data.shape == (8, 16)


@pytest.mark.parametrize("fields", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_every_parameter_is_covered_by_a_rule(fields):
    _, params = abstract_params(decoder_config_from_hf(fields, "test"), np.float32)
    for path, sharding in flatten_dict(param_shardings(mesh(), params), sep=".").items():
        is_matrix = path.endswith(("kernel", "embed_tokens", "table"))
        assert ({"fsdp", "tensor"} <= set(sharding.spec)) is is_matrix, path


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"layers\.moe\.router"):
        param_shardings(mesh(), {"layers": {"moe": {"router": np.zeros(1)}}})


def test_mesh_that_does_not_fit_names_both_sides():
    with pytest.raises(UserError, match="needs 16 devices; there are 8"):
        mesh(4, 4, 1)
    with pytest.raises(UserError, match=r"mesh\.tensor = 4 does not divide the model's 2 key-value heads"):
        check_mesh(mesh(1, 1, 4), decoder_config_from_hf(tiny.LLAMA2, "test"))
