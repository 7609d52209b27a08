"""Checkpoints: read and written through one table, onto one device or many, and refused when they do not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from rdjax.errors import UserError
from rdjax.models.families.registry import decoder_config_from_hf, read_decoder_config
from rdjax.models.linear import quantise
from rdjax.models.tensor_files import INDEX, SINGLE
from rdjax.models.weights import abstract_params, checkpoint_shapes, load_params, save_params
from tests import tiny


def load(folder, dtype=jnp.float32):
    config = read_decoder_config(folder)
    return load_params(folder, config, dtype, tiny.single_device(config, dtype))


def refusal(folder) -> str:
    """The message with which a folder is refused."""
    with pytest.raises(UserError) as error:
        load(folder)
    return str(error.value)


@pytest.mark.parametrize("fields", tiny.LLAMAS.values(), ids=tiny.LLAMAS)
def test_the_table_gives_the_tensors_of_a_checkpoint(fields):
    assert checkpoint_shapes(decoder_config_from_hf(fields, "here")) == tiny.tensor_shapes(fields)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("fields", tiny.CONFIGS.values(), ids=tiny.CONFIGS)
def test_saving_what_was_loaded_gives_the_same_tensors(tmp_path, fields, shards):
    params = load(tiny.write_random_checkpoint(tmp_path / "in", fields, shards=shards))
    (tmp_path / "out").mkdir()
    save_params(tmp_path / "out", decoder_config_from_hf(fields, "here"), params, np.float32)
    saved, expected = load_file(tmp_path / "out" / SINGLE), tiny.random_tensors(fields, 0)
    assert set(saved) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(saved[name], tensor)


def test_a_number_that_a_dtype_cannot_hold_is_refused(tmp_path):
    params = load(tiny.write_random_checkpoint(tmp_path, tiny.LLAMA3))
    params["norm"]["weight"] = np.full_like(params["norm"]["weight"], 1e5)
    config = decoder_config_from_hf(tiny.LLAMA3, "here")
    with pytest.raises(
        UserError, match=r"model\.norm\.weight has numbers that float16 cannot hold; accepted: bfloat16"
    ):
        save_params(tmp_path, config, params, jnp.float16)
    save_params(tmp_path, config, params, jnp.bfloat16)


def test_kernels_are_stacked_and_turned(tmp_path):
    """[out, in] in the file, [L, in, out] in memory."""
    params = load(tiny.write_random_checkpoint(tmp_path, tiny.LLAMA3))
    tensors = tiny.random_tensors(tiny.LLAMA3, 0)
    kernel = params["layers"]["self_attn"]["k_proj"]["kernel"]
    assert kernel.shape == (2, 32, 32)
    np.testing.assert_array_equal(kernel[1], tensors["model.layers.1.self_attn.k_proj.weight"].T)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_files(tmp_path, dtype):
    """Most published checkpoints are bfloat16: loaded exactly, widened, and written back unchanged."""
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2)
    tensors = {name: tensor.astype(dtype) for name, tensor in tiny.random_tensors(tiny.LLAMA2, 0).items()}
    tiny.write_tensors(tmp_path, tensors)
    wide, kept = load(tmp_path), load(tmp_path, dtype)
    assert wide["embed_tokens"].dtype == jnp.float32
    assert kept["embed_tokens"].dtype == dtype
    np.testing.assert_array_equal(wide["embed_tokens"], tensors["model.embed_tokens.weight"].astype(np.float32))
    save_params(tmp_path, read_decoder_config(tmp_path), wide, dtype)
    for name, tensor in load_file(tmp_path / SINGLE).items():
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor, tensors[name])


def test_sharded_load_equals_single_device_load(tmp_path):
    """Each device's slice is read by itself: over layers, inputs and outputs of the kernels."""
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2 | {"num_hidden_layers": 4}, shards=2)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("layer", "row", "column"))
    axes = {1: ("column",), 2: ("row", "column"), 3: ("layer", "row", "column")}
    config = read_decoder_config(tmp_path)
    _, abstract = abstract_params(config, jnp.float32)
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(*axes[leaf.ndim])), abstract)
    spread = load_params(tmp_path, config, jnp.float32, shardings)
    kernel = spread["layers"]["mlp"]["down_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 24, 16)
    jax.tree.map(np.testing.assert_array_equal, spread, load(tmp_path))


def test_all_faults_are_reported_at_once(tmp_path):
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2)
    tensors = tiny.random_tensors(tiny.LLAMA2, 0)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((48, 32), np.float32)  # turned
    tiny.write_tensors(tmp_path, tensors)
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "model.layers.1.mlp.up_proj.weight is missing" in message
    assert "model.layers.2.mlp.up_proj.weight is not a tensor" in message
    assert "model.layers.0.mlp.down_proj.weight has shape [48, 32], config.json says [32, 48]" in message
    assert message.count("model.layers.") == 3


def test_what_the_config_determines_may_lie_in_the_file(tmp_path):
    """Old checkpoints store rotary frequencies; tied ones may store the head as well."""
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA3)
    tensors = tiny.random_tensors(tiny.LLAMA3, 0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    tiny.write_tensors(tmp_path, tensors)
    assert "lm_head" not in load(tmp_path)


def test_an_untied_model_needs_its_head(tmp_path):
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA3)
    (tmp_path / "config.json").write_text(json.dumps(tiny.LLAMA3 | {"tie_word_embeddings": False}))
    assert "lm_head.weight is missing" in refusal(tmp_path)


def test_truncated_file(tmp_path):
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2)
    path = tmp_path / SINGLE
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path}: not a readable safetensors file" in refusal(tmp_path)


def test_a_web_page_instead_of_weights(tmp_path):
    """What a download that was refused leaves behind."""
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2)
    (tmp_path / SINGLE).write_text("<html>401 Unauthorized</html>")
    assert "not a readable safetensors file" in refusal(tmp_path)


def test_pickled_weights_are_refused_with_a_way_out(tmp_path):
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2)
    (tmp_path / SINGLE).rename(tmp_path / "pytorch_model.bin")
    message = refusal(tmp_path)
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_no_weights_at_all(tmp_path):
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2)
    (tmp_path / SINGLE).unlink()
    assert f"{tmp_path / SINGLE}: not found" in refusal(tmp_path)


def test_a_shard_that_was_not_downloaded(tmp_path):
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2, shards=3)
    gone = tmp_path / "model-00002-of-00003.safetensors"
    gone.unlink()
    assert f"{gone}: not found" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": []}'])
def test_broken_index(tmp_path, content):
    tiny.write_random_checkpoint(tmp_path, tiny.LLAMA2, shards=2)
    (tmp_path / INDEX).write_text(content)
    assert f"{tmp_path / INDEX}: not a safetensors index" in refusal(tmp_path)


@pytest.fixture(params=["biased", "qwen3_5", "gemma4"])
def quantised(tmp_path, request):
    """A decoder as it is in the files, and with its kernels in int8."""
    fields = tiny.CONFIGS[request.param]
    config = decoder_config_from_hf(fields, "here")
    folder = tiny.write_random_checkpoint(tmp_path, fields)
    graph, abstract = abstract_params(config, jnp.float32, int8=True)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(lambda _: sharding, abstract)
    loaded = load_params(folder, config, jnp.float32, placed, int8=True)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), loaded) == jax.tree.map(lambda a: (a.shape, a.dtype), abstract)
    return tiny.load_decoder(folder), nnx.merge(graph, loaded)


def flatten(decoder):
    """The decoder's parameters as {"a.b.c": array}."""
    return flatten_dict(nnx.to_pure_dict(nnx.state(decoder)), sep=".")


def test_int8_kernels_are_off_by_half_a_step_at_most(quantised):
    exact, ours = (flatten(decoder) for decoder in quantised)
    kernels = [path for path in ours if ours[path].dtype == jnp.int8]
    exempt = ("in_proj_a", "in_proj_b")
    layers = {path for path in exact if path.startswith("layers.") and path.endswith("kernel")}
    assert set(kernels) == {path for path in layers if not any(name in path for name in exempt)}
    for path in kernels:
        scale = ours[path.replace("kernel", "scale")][..., None, :]
        assert np.abs(ours[path] * scale - exact[path]).max() <= 0.5001 * np.max(scale)
        assert np.abs(ours[path]).max(axis=-2).min() == 127, "every column uses the whole range"
    for path in exact.keys() - set(kernels):
        np.testing.assert_array_equal(exact[path], ours[path])


def test_an_int8_decoder_computes_with_its_rounded_weights(quantised):
    exact, ours = quantised
    state = flatten(ours)
    graph, rounded = nnx.graphdef(exact), flatten(exact)
    for path in rounded:
        if state[path].dtype == jnp.int8:
            rounded[path] = state[path] * state[path.replace("kernel", "scale")][..., None, :]
    tokens = tiny.random_tokens(2, 9)
    expected = tiny.forward(nnx.merge(graph, unflatten_dict(rounded, sep=".")), tokens).final_BPD
    np.testing.assert_allclose(tiny.forward(ours, tokens).final_BPD, expected, atol=5e-4)
    assert 1e-4 < np.abs(expected - tiny.forward(exact, tokens).final_BPD).mean() < 0.1


def test_a_column_of_zeros_stays_one():
    kernel, scale = quantise(jnp.zeros((3, 2)).at[0, 1].set(5.0))
    assert kernel.tolist() == [[0, 127], [0, 0], [0, 0]] and scale[0] == 0
