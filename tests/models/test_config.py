"""Reading `config.json`: both spellings of the rotary fields, defaults, and what is refused."""

import json

import numpy as np
import pytest

from rdjax.errors import UserError
from rdjax.models.families import gemma4
from rdjax.models.families.registry import decoder_config_from_hf, read_decoder_config
from rdjax.models.rotary import make_rope
from tests import tiny


def test_llama3_fields():
    config = decoder_config_from_hf(tiny.LLAMA3, "here")
    assert (config.heads, config.kv_heads, config.head_width, config.tied_embeddings) == (4, 2, 16, True)
    assert config.pattern[0].rope == make_rope({"rope_theta": 10000.0, **tiny.LLAMA3["rope_scaling"]}, 16, 512)


@pytest.mark.parametrize("name", ["llama1", "llama3", "biased"])
def test_both_spellings_of_rope_mean_the_same(name):
    old = tiny.CONFIGS[name] | {"rope_theta": 777.0}
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {"rope_type": "default", **old.get("rope_scaling", {}), "rope_theta": 777.0}
    config = decoder_config_from_hf(new, "here")
    assert config == decoder_config_from_hf(old, "here")
    assert config.pattern[0].rope == make_rope(
        {"rope_theta": 777.0, **old.get("rope_scaling", {})}, config.head_width, 512
    )


def test_null_means_default():
    """Hugging Face writes null for what a model does not set."""
    nulls = {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None, "sliding_window": None}
    config = decoder_config_from_hf(tiny.LLAMA2 | nulls, "here")
    assert (config.kv_heads, config.head_width) == (4, 8)
    assert config.pattern[0].rope == make_rope({"rope_theta": 10000.0}, 8, 512)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt_neox"}, ["gpt_neox", "llama"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"sliding_window": 128}, ["sliding_window", "128"]),
        ({"is_causal": False}, ["is_causal", "False"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, ["num_attention_heads 3", "num_key_value_heads 2"]),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, ["spiral", "llama3"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["factor", "missing"]),
    ],
)
def test_what_the_decoder_cannot_compute_is_refused(change, named):
    with pytest.raises(UserError) as error:
        decoder_config_from_hf(tiny.LLAMA2 | change, "somewhere/config.json")
    for part in ["somewhere/config.json", *named]:
        assert part in str(error.value)


ROPES = {"full_attention": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}}


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window = 0; accepted: null"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers has 1 entries for"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 4}, "layer_types has 'sliding_attention'"),
        ("gemma3", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "type = 'linear' is not supported"),
        ("olmo3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate = False"),
        ("gemma4", {"rope_parameters": gemma4.ROPES | ROPES}, "partial_rotary_factor = 0.5 is not supported"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused(name, change, named):
    fields = tiny.CONFIGS[name] | change
    with pytest.raises(UserError, match=named):
        decoder_config_from_hf(fields, "here")


def test_a_wrapper_refuses_what_it_would_not_apply():
    text = tiny.CONFIGS["gemma3"] | {"final_logit_softcapping": 30.0}
    assert decoder_config_from_hf(text, "here").logit_softcap == 30.0
    with pytest.raises(UserError, match=r"text_config: final_logit_softcapping = 30\.0 is not supported"):
        decoder_config_from_hf({"model_type": "gemma3", "text_config": text}, "here")


def test_proportional_rotation_counts_whole_frequencies():
    rope = make_rope({"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.35}, 32, 512)
    assert np.count_nonzero(rope.frequencies) == int(0.35 * 32 // 2) == 5


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"])
def test_a_missing_field_is_named(field):
    fields = {key: value for key, value in tiny.LLAMA2.items() if key != field}
    with pytest.raises(UserError, match=field):
        decoder_config_from_hf(fields, "here")


def test_no_config_file(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: not found"):
        read_decoder_config(tmp_path)


def test_invalid_json_names_the_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.LLAMA2, indent=2).replace(",", "", 1))
    with pytest.raises(UserError, match="line 5"):
        read_decoder_config(tmp_path)


def test_json_that_is_no_config(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json"):
        read_decoder_config(tmp_path)
