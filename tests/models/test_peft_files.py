"""Adapters in the format of PEFT: what is written for each family, and what is read or refused."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from rdjax.errors import UserError
from rdjax.models.families.registry import decoder_config_from_hf
from rdjax.models.lora import LoraSpec, scaled_adapter
from rdjax.models.peft_files import adapter_modules, load_adapter, save_adapter
from tests import tiny
from tests.distillation.case import random_adapter

ALL = LoraSpec(4, 8.0, 0.1, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
LAYER = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def saved(tmp_path):
    """A folder with an adapter of a Llama on all projections, the decoder, and its parameters."""
    decoder = tiny.random_decoder(tiny.LLAMA2)
    adapter = random_adapter(decoder.config, spec=ALL)
    save_adapter(tmp_path, adapter, decoder.config, ALL, "owner/model")
    return tmp_path, decoder, nnx.to_pure_dict(nnx.state(decoder)), adapter


def change_fields(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def effect(adapter, spec):
    """Returns what the adapter adds to every kernel."""
    return {path: np.asarray(ab["a"] @ ab["b"]) for path, ab in scaled_adapter(adapter, spec.scale).items()}


def assert_same_effect(one, other):
    for left, right in zip(effect(*one).values(), effect(*other).values(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear", r".*\.(q_proj|down_proj)$"])
def test_the_tensors_say_what_is_adapted(saved, targets):
    folder, decoder, base, adapter = saved
    change_fields(folder, target_modules=targets)
    read, spec = load_adapter(folder, decoder.config, base)
    assert (spec.rank, spec.alpha, spec.targets) == (ALL.rank, ALL.alpha, ALL.targets)
    jax.tree.map(np.testing.assert_array_equal, read, adapter)


def test_ranks_and_alphas_of_their_own(saved):
    """As PEFT scales them: alpha over the module's own rank."""
    folder, decoder, base, adapter = saved
    narrow = {LAYER.format(1, "A"), LAYER.format(1, "B")}

    def cut(tensors):
        a, b = (tensors[LAYER.format(1, part)] for part in "AB")
        return {**tensors, LAYER.format(1, "A"): a[:2].copy(), LAYER.format(1, "B"): b[:, :2].copy()}

    change_tensors(folder, cut)
    change_fields(folder, rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 5})
    changed = effect(*load_adapter(folder, decoder.config, base))["self_attn.q_proj"]
    ab = adapter["self_attn.q_proj"]
    np.testing.assert_allclose(changed[0], ab["a"][0] @ ab["b"][0] * 2.0, atol=1e-6)
    np.testing.assert_allclose(changed[1], ab["a"][1][:, :2] @ ab["b"][1][:2] * 5 / 2, atol=1e-6)
    assert narrow <= load_file(folder / "adapter_model.safetensors").keys()


def test_an_alpha_by_the_full_name_of_a_wrapped_module(tmp_path):
    """PEFT compares the keys with the names in the whole model."""
    config = decoder_config_from_hf(tiny.GEMMA3_WRAPPED, "tiny")
    adapter = random_adapter(config, spec=ALL)
    save_adapter(tmp_path, adapter, config, ALL, "tiny")
    change_fields(tmp_path, alpha_pattern={"model.language_model.layers.1.self_attn.q_proj": 20})
    changed = effect(*load_adapter(tmp_path, config, {"embed_tokens": np.zeros(1)}))["self_attn.q_proj"]
    ab = adapter["self_attn.q_proj"]
    for layer, scale in ((0, 2.0), (1, 5.0)):
        np.testing.assert_allclose(changed[layer], ab["a"][layer] @ ab["b"][layer] * scale, atol=1e-6)


def test_rank_stabilised_scaling(saved):
    folder, decoder, base, _ = saved
    change_fields(folder, use_rslora=True)
    _, spec = load_adapter(folder, decoder.config, base)
    assert spec.scale == ALL.alpha / np.sqrt(ALL.rank)


def test_some_layers_alone(saved):
    folder, decoder, base, _ = saved
    change_tensors(folder, lambda tensors: {name: x for name, x in tensors.items() if ".layers.0." not in name})
    with pytest.raises(UserError, match=r"layers\.0\..* has none"):
        load_adapter(folder, decoder.config, base)
    change_fields(folder, layers_to_transform=[1])
    changed = effect(*load_adapter(folder, decoder.config, base))["mlp.up_proj"]
    assert not changed[0].any() and changed[1].any()


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_saved_embeddings_must_be_the_bases(saved, name):
    folder, decoder, base, _ = saved
    own = np.asarray(base["embed_tokens"] if name == "embed_tokens" else base["lm_head"]["kernel"].T)
    stored = "base_model.model." + ("model.embed_tokens.weight" if name == "embed_tokens" else "lm_head.weight")
    change_tensors(folder, lambda tensors: tensors | {stored: np.ascontiguousarray(own)})
    load_adapter(folder, decoder.config, base)
    change_tensors(folder, lambda tensors: tensors | {stored: own + 1})
    with pytest.raises(UserError, match=rf"{name}.* is not wanted"):
        load_adapter(folder, decoder.config, base)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOHA"),
        ("bias", "all"),
        ("use_dora", True),
        ("lora_bias", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "loftq"),
        ("modules_to_save", ["lm_head"]),
        ("alora_invocation_tokens", [1, 2]),
        ("trainable_token_indices", [3]),
        ("layer_replication", [[0, 2]]),
        ("fan_in_fan_out", True),
        ("a_field_of_the_future", 0.5),
    ],
)
def test_what_changes_the_result_otherwise_is_refused_by_name(saved, field, value):
    folder, decoder, base, _ = saved
    change_fields(folder, **{field: value})
    with pytest.raises(UserError, match=rf"adapter_config\.json: {field} = .* is not supported; accepted: "):
        load_adapter(folder, decoder.config, base)


@pytest.mark.parametrize("targets", [ALL.targets, ("q_proj", "v_proj"), ("up_proj",), ("o_proj", "k_proj")])
@pytest.mark.parametrize("name", ["phi3", "glm4", "granite4"])
def test_fused_projections_are_packed_and_read_back(tmp_path, name, targets):
    decoder = tiny.random_decoder(tiny.CONFIGS[name])
    spec = LoraSpec(4, 8.0, 0.0, targets)
    adapter = random_adapter(decoder.config, spec=spec)
    save_adapter(tmp_path, adapter, decoder.config, spec, "owner/model")
    read, again = load_adapter(tmp_path, decoder.config, nnx.to_pure_dict(nnx.state(decoder)))
    assert (again.rank, again.alpha, set(again.targets)) == (4, 8.0, set(targets))
    assert read.keys() == adapter.keys()
    assert_same_effect((read, again), (adapter, spec))


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_written_names_are_those_of_the_families_modules(tmp_path, name):
    """PEFT and vLLM find a module by its name in the model class: all are named after tensors of the checkpoint."""
    decoder = tiny.random_decoder(tiny.CONFIGS[name])
    spec = tiny.whole_spec(decoder.config, 4, 8.0)
    save_adapter(tmp_path, random_adapter(decoder.config, spec=spec), decoder.config, spec, "owner/model")
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    modules = {key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for key in tensors}
    assert {f"{module}.weight" for module in modules} <= tiny.tensor_shapes(tiny.CONFIGS[name]).keys()
    assert {module.split(".")[-1] for module in modules} == set(fields["target_modules"])
    assert fields["base_model_name_or_path"] == "owner/model"
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if ".lora_A." in key}
    assert ranks == {fields["r"]}, "earlier versions of vLLM read no rank_pattern"
    assert len(modules) == sum(len(module.layers) for module in adapter_modules(decoder.config))


@pytest.mark.parametrize(
    "fields", [{"target_modules": ["1.self_attn.q_proj"]}, {"layers_to_transform": 1}, {"layers_to_transform": 0}]
)
def test_layers_that_are_named_are_the_only_ones(saved, fields):
    """PEFT writes long lists of modules by the shortest endings of their names; 0 is a layer too."""
    folder, decoder, base, _ = saved
    change_tensors(folder, lambda tensors: {LAYER.format(1, part): tensors[LAYER.format(1, part)] for part in "AB"})
    change_fields(folder, **fields)
    changed = effect(*load_adapter(folder, decoder.config, base))
    assert list(changed) == ["self_attn.q_proj"] and not changed["self_attn.q_proj"][0].any()
