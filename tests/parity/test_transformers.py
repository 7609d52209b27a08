"""The decoder and its files against transformers itself."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rdjax.models.families.registry import FAMILIES, decoder_config_from_hf, read_decoder_config
from rdjax.models.weights import abstract_params, load_params, save_params
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
