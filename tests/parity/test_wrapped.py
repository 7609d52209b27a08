"""The decoder of text inside models of several parts (Gemma 3, Mistral 3) against transformers and peft."""

import json
import re

import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
import transformers  # noqa: E402 (needs torch)
from safetensors.numpy import load_file, save_file  # noqa: E402

from rdjax.models.lora import merge_adapter, scaled_adapter  # noqa: E402
from rdjax.models.peft_files import adapter_modules, load_adapter, save_adapter  # noqa: E402
from rdjax.models.weights import save_params  # noqa: E402
from tests import tiny  # noqa: E402
from tests.distillation.case import random_adapter  # noqa: E402

pytestmark = pytest.mark.parity

# As published files of earlier versions of transformers name their tensors.
OLDER_NAMES = (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))
OLDER_NAMES += (("model.vision_tower.", "vision_tower."), ("model.multi_modal_projector.", "multi_modal_projector."))


@pytest.fixture(scope="module", params=tiny.WRAPPERS)
def folder(request, tmp_path_factory):
    """A folder that transformers wrote, of a random model with lively activations."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    fields = dict(tiny.WRAPPERS[request.param])
    config = transformers.AutoConfig.for_model(**fields)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():
        noise = torch.randn_like(weight)
        centred = request.param == "gemma3" or (request.param == "qwen3_5" and "linear_attn" not in name)
        one = 0.0 if centred else 1.0
        weight.data = (
            one + 0.3 * noise if "norm" in name else noise * (1 if "embed" in name else weight.shape[-1] ** -0.5)
        )
    model.save_pretrained(folder)
    return folder


def load(folder):
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def logits_of(model, tokens) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("names", ["present", "older"])
def test_logits_are_those_of_transformers(folder, names, tmp_path):
    tokens, expected = tiny.random_tokens(2, 24), load(folder)
    source = folder
    if names == "older":
        tensors = load_file(folder / "model.safetensors")
        for new, old in OLDER_NAMES:
            tensors = {re.sub(rf"^{re.escape(new)}", old, name): tensor for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        source = tmp_path
    decoder = tiny.load_decoder(source)
    close(decoder.logits(tiny.forward(decoder, tokens).final_BPD), logits_of(expected, tokens))


def test_an_adapter_in_peft_and_a_merged_folder(folder, tmp_path):
    decoder, tokens = tiny.load_decoder(folder), tiny.random_tokens(2, 24)
    params = nnx.to_pure_dict(nnx.state(decoder))
    spec = tiny.whole_spec(decoder.config, 4, 8.0)
    adapter = random_adapter(decoder.config, spec=spec)
    save_adapter(tmp_path / "adapter", adapter, decoder.config, spec, str(folder))
    ours = decoder.logits(tiny.forward(decoder, tokens, adapter=scaled_adapter(adapter, spec.scale)).final_BPD)
    model = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter")
    lora = [name for name, _ in model.named_parameters() if "lora_" in name]
    modules = sum(len(module.layers) for module in adapter_modules(decoder.config))
    assert len(lora) == 2 * modules, "and none in the tower of images"
    close(ours, logits_of(model, tokens))
    model.save_pretrained(tmp_path / "again")
    again, found = load_adapter(tmp_path / "again", decoder.config, params)
    assert (found.scale, found.targets) == (spec.scale, spec.targets)
    close(decoder.logits(tiny.forward(decoder, tokens, adapter=scaled_adapter(again, found.scale)).final_BPD), ours)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text((folder / "config.json").read_text())
    merged = merge_adapter(params, adapter, spec.scale)
    save_params(tmp_path / "merged", decoder.config, merged, np.float32, folder)
    close(ours, logits_of(load(tmp_path / "merged"), tokens))


def test_names_in_the_adapter_are_those_that_vllm_loads(folder, tmp_path):
    """vLLM maps the names of the whole model; those of a decoder alone load and do nothing (vllm#48019, #48149)."""
    decoder = tiny.load_decoder(folder)
    spec = tiny.whole_spec(decoder.config, 4, 8.0)
    save_adapter(tmp_path, random_adapter(decoder.config, spec=spec), decoder.config, spec, str(folder))
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.language_model.layers.") for name in names)
    pattern = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert re.fullmatch(pattern, "model.language_model.layers.0.self_attn.q_proj")
    assert not re.fullmatch(pattern, "model.vision_tower.encoder.layers.0.self_attn.q_proj")
