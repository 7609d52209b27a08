"""Adapters of every family in peft, and merged in transformers: both give our logits."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from rdjax.models.lora import merge_adapter, scaled_adapter  # noqa: E402
from rdjax.models.peft_files import load_adapter, save_adapter  # noqa: E402
from rdjax.models.weights import save_params  # noqa: E402
from tests import tiny  # noqa: E402
from tests.distillation.case import random_adapter  # noqa: E402
from tests.parity import reference  # noqa: E402

pytestmark = pytest.mark.parity


def torch_logits(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_peft_and_a_merged_folder_give_our_logits(name, tmp_path):
    """On all projections, over more tokens than a window has; and peft's own file is read back."""
    decoder, tokens = tiny.random_decoder(tiny.CONFIGS[name], seed=3), tiny.random_tokens(2, 24)
    tiny.write_random_checkpoint(tmp_path / "base", tiny.CONFIGS[name], seed=3)
    spec = tiny.whole_spec(decoder.config, 4, 8.0)
    adapter = random_adapter(decoder.config, spec=spec)
    save_adapter(tmp_path / "adapter", adapter, decoder.config, spec, str(tmp_path / "base"))
    ours = decoder.logits(tiny.forward(decoder, tokens, adapter=scaled_adapter(adapter, spec.scale)).final_BPD)
    plain = decoder.logits(tiny.forward(decoder, tokens).final_BPD)
    assert np.abs(ours - plain).max() > 0.1, "the adapter matters"
    model = peft.PeftModel.from_pretrained(reference.load(tmp_path / "base"), tmp_path / "adapter")
    np.testing.assert_allclose(ours, torch_logits(model, tokens), atol=2e-4 * max(1, np.abs(ours).max()))
    model.save_pretrained(tmp_path / "again")
    read, found = load_adapter(tmp_path / "again", decoder.config, nnx.to_pure_dict(nnx.state(decoder)))
    assert (found.targets, found.scale, found.rank) == (spec.targets, spec.scale, spec.rank)
    jax.tree.map(np.testing.assert_array_equal, read, adapter)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text(json.dumps(tiny.CONFIGS[name]))
    merged = merge_adapter(nnx.to_pure_dict(nnx.state(decoder)), adapter, spec.scale)
    save_params(tmp_path / "merged", decoder.config, merged, np.float32)
    theirs = torch_logits(reference.load(tmp_path / "merged"), tokens)
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(1, np.abs(ours).max()))
