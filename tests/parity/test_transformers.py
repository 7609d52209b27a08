"""The decoder and its files against transformers itself."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from configs import base
from rdjax.models.families.registry import FAMILIES, decoder_config_from_hf, read_decoder_config
from rdjax.models.load import load_model
from rdjax.models.rotary import make_rope
from rdjax.models.weights import abstract_params, load_params, save_params
from rdjax.parallel.mesh import make_mesh
from tests import tiny

torch = pytest.importorskip("torch")
import transformers  # noqa: E402 (needs torch)

from tests.parity import reference  # noqa: E402 (needs torch)

pytestmark = pytest.mark.parity

TOLERANCE = 2e-4
LENGTHS = [40, 23, 1]
# What a config of the type cannot leave out.
NEEDED = {"granitemoehybrid": {"num_local_experts": 0, "layer_types": ["attention"] * 30}}


@pytest.fixture(params=tiny.CONFIGS)
def name(request):
    return request.param


@pytest.fixture(params=["tied", "untied"])
def fields(request, name):
    return tiny.CONFIGS[name] | {"tie_word_embeddings": request.param == "tied"}


def assert_same_states(decoder, model):
    """Inputs of all blocks, final states and logits at every real position of a right-padded batch."""
    tokens_BT = tiny.random_tokens(len(LENGTHS), max(LENGTHS))
    real_BT = tiny.segments_of(LENGTHS, max(LENGTHS)).astype(bool)
    theirs = reference.forward(model, tokens_BT, real_BT)
    ours = tiny.forward(decoder, tokens_BT, LENGTHS)
    assert len(theirs.inputs_LBTD) == decoder.config.layers
    np.testing.assert_allclose(ours.inputs_LBQD[:, real_BT], theirs.inputs_LBTD[:, real_BT], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(ours.final_BPD[real_BT], theirs.final_BTD[real_BT], atol=TOLERANCE, rtol=0)
    logits_BTV = decoder.logits(ours.final_BPD)
    np.testing.assert_allclose(logits_BTV[real_BT], theirs.logits_BTV[real_BT], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shards", [1, 3])
def test_loaded_by_both(tmp_path, fields, shards):
    tiny.write_random_checkpoint(tmp_path, fields, seed=1, shards=shards)
    assert_same_states(tiny.load_decoder(tmp_path), reference.load(tmp_path))


def test_written_by_rdjax(tmp_path, fields):
    decoder = tiny.load_decoder(tiny.write_random_checkpoint(tmp_path / "in", fields, seed=2))
    (tmp_path / "out").mkdir()
    shutil.copy(tmp_path / "in" / "config.json", tmp_path / "out")
    save_params(tmp_path / "out", decoder.config, nnx.to_pure_dict(nnx.state(decoder)), np.float32)
    assert_same_states(decoder, reference.load(tmp_path / "out"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_written_by_transformers(tmp_path, fields, dtype):
    """Its own spelling of config.json, and bfloat16 files, which most published models have."""
    model = reference.load(tiny.write_random_checkpoint(tmp_path / "in", fields, seed=3)).to(dtype)
    model.save_pretrained(tmp_path / "out", max_shard_size="60KB")
    assert read_decoder_config(tmp_path / "out") == read_decoder_config(tmp_path / "in")
    assert_same_states(tiny.load_decoder(tmp_path / "out"), reference.load(tmp_path / "out"))


def test_bfloat16_parameters_are_the_files_own_bits(tmp_path):
    model = reference.load(tiny.write_random_checkpoint(tmp_path / "in", tiny.LLAMA3, seed=4)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "out")
    config = read_decoder_config(tmp_path / "out")
    assert abstract_params(config, jnp.bfloat16)[1]["embed_tokens"].dtype == jnp.bfloat16
    params = load_params(tmp_path / "out", config, jnp.bfloat16, tiny.single_device(config, jnp.bfloat16))
    bits = model.model.embed_tokens.weight.detach().view(torch.int16).numpy()
    np.testing.assert_array_equal(np.asarray(params["embed_tokens"]).view(np.int16), bits)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_missing_fields_mean_what_they_mean_to_transformers(model_type):
    """Published config.json files leave fields out that equal the defaults of their class."""
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 30}
    fields = {"num_attention_heads": 32, **sizes, **NEEDED.get(model_type, {})}
    if model_type in tiny.WRAPPERS:
        text = tiny.WRAPPERS[model_type]["text_config"]["model_type"]
        fields = {"text_config": {"model_type": text, **fields}}
    fields["model_type"] = model_type
    whole = transformers.AutoConfig.for_model(**fields).to_dict()
    assert decoder_config_from_hf(fields, "short") == decoder_config_from_hf(whole, "whole")


ROPES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "yarn, not rounded": {"factor": 4.0, "original_max_position_embeddings": 128, "truncate": False, "beta_fast": 8.0},
    "yarn, two weights": {"factor": 4.0, "original_max_position_embeddings": 128, "mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn, its own factor": {"factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.2},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.3, 2.0],
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 128,
    },
    "proportional": {"partial_rotary_factor": 0.5, "factor": 2.0},
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_frequencies_of_every_kind(name):
    kind, *_ = name.split(",")
    rope = {"rope_type": kind, "rope_theta": 777.0, **ROPES[name]}
    ours = make_rope(rope, head_width=8, max_positions=512)
    config = transformers.LlamaConfig(**(tiny.LLAMA2 | {"rope_parameters": dict(rope)}))
    frequencies, amplitude = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](config)
    np.testing.assert_allclose(ours.frequencies, frequencies, rtol=1e-6)
    assert ours.amplitude == pytest.approx(amplitude)


PLAIN = {"rope_type": "default", "rope_theta": 1e6}
PLAIN_OF_TYPES = {"full_attention": PLAIN, "sliding_attention": PLAIN | {"rope_theta": 1e4}}
# Spellings of rotary positions that a folder has after an edit, or after a conversion by another version.
SPELLINGS = {
    "rope_scaling added to a newer config": tiny.QWEN3 | {"rope_parameters": PLAIN, "rope_scaling": tiny.YARN},
    "the same by types of layers": tiny.OLMO3 | {"rope_parameters": PLAIN_OF_TYPES},
    "the same, with a local base": tiny.GEMMA3 | {"rope_parameters": PLAIN_OF_TYPES},
    "the same of Phi 3": tiny.PHI3 | {"rope_parameters": PLAIN},
    "Ministral 3 with the older name": {
        {"rope_parameters": "rope_scaling"}.get(name, name): value for name, value in tiny.MINISTRAL3.items()
    },
    "the original context beside it": tiny.LLAMA2
    | {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 4.0}, "original_max_position_embeddings": 32},
    "Gemma 4 without a partial factor": tiny.GEMMA4 | {"rope_parameters": PLAIN_OF_TYPES},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_rotary_positions_in_unusual_spellings(tmp_path, name):
    tiny.write_random_checkpoint(tmp_path, SPELLINGS[name], seed=1)
    assert_same_states(tiny.load_decoder(tmp_path), reference.load(tmp_path))


def test_a_convolution_of_another_length(tmp_path):
    tiny.write_random_checkpoint(tmp_path, tiny.QWEN3_5 | {"linear_conv_kernel_dim": 3}, seed=1)
    assert_same_states(tiny.load_decoder(tmp_path), reference.load(tmp_path))


def test_long_sequences_of_longrope_have_its_long_factors(tmp_path):
    """As in transformers for a batch whose longest sequence is over the original context."""
    folder, tokens_BT = tiny.write_random_checkpoint(tmp_path, tiny.PHI3, seed=1), tiny.random_tokens(2, 130)
    short, theirs = tiny.load_decoder(folder), reference.load(folder)
    config = short.config.for_sequences_of(130)
    assert (short.config.max_positions, config.max_positions) == (96, 512)
    assert short.config.for_sequences_of(96) is short.config
    long = nnx.merge(abstract_params(config, jnp.float32)[0], nnx.to_pure_dict(nnx.state(short)))
    expected = reference.forward(theirs, tokens_BT, np.ones((2, 130), bool)).logits_BTV
    ours = [decoder.logits(tiny.forward(decoder, tokens_BT).final_BPD) for decoder in (long, short)]
    np.testing.assert_allclose(ours[0], expected, atol=2e-4 * np.abs(expected).max())
    assert np.abs(ours[1] - expected).max() > 0.1, "the factors matter"


FP8 = {"blocks": (16, 16), "whole tensors": None}


@pytest.mark.parametrize("kind", FP8)
def test_weights_in_fp8_are_multiplied_by_their_scales(tmp_path, kind):
    """transformers' own dequantisation of the same files, which it makes to run where there is no FP8."""
    fields, block = tiny.LLAMA2, FP8[kind]
    tensors = tiny.random_tensors(fields, seed=2)
    stored, plain = {}, {}
    for name, tensor in tensors.items():
        stored[name] = plain[name] = tensor
        if "_proj" not in name:
            continue
        rows, columns = tensor.shape if block is None else block
        grid = tensor.reshape(tensor.shape[0] // rows, rows, tensor.shape[1] // columns, columns)
        scale = np.abs(grid).max(axis=(1, 3)) / 448
        small = (grid / scale[:, None, :, None]).astype(ml_dtypes.float8_e4m3fn)
        stored[name] = small.reshape(tensor.shape)
        stored[f"{name}_scale_inv"] = scale if block else scale.reshape(())
        plain[name] = (small.astype(np.float32) * scale[:, None, :, None]).reshape(tensor.shape)
    folders = tmp_path / "stored", tmp_path / "plain"
    quantisation = {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": "static"}
    for folder, contents, more in zip(
        folders, (stored, plain), ({"quantization_config": quantisation}, {}), strict=True
    ):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(fields | more))
        tiny.write_tensors(folder, contents)
        tiny.write_tokenizer(folder)
    mesh = make_mesh(base.get_config().mesh)
    ours = load_model(str(folders[0]), "float32", mesh)
    tokens = tiny.random_tokens(2, 20)
    decoder = nnx.merge(ours.graph, ours.base)
    expected = reference.forward(reference.load(folders[1]), tokens, np.ones((2, 20), bool)).logits_BTV
    np.testing.assert_allclose(decoder.logits(tiny.forward(decoder, tokens).final_BPD), expected, atol=TOLERANCE)
