"""Losses, adapter gradients and exports against a direct computation in torch, transformers and peft."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
import torch.nn.functional as F  # noqa: E402

from rdjax.models.lora import merge_adapter, scaled_adapter  # noqa: E402
from rdjax.models.peft_files import adapter_modules, load_adapter, save_adapter  # noqa: E402
from rdjax.models.weights import save_params  # noqa: E402
from tests import tiny  # noqa: E402
from tests.distillation.case import (  # noqa: E402
    OURS,
    PUBLISHED,
    SHARED,
    SPEC,
    Case,
    assert_close,
    loss_and_grad,
    make_update,
    random_adapter,
    random_pairs,
)
from tests.parity import reference  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=tiny.CONFIGS)
def setting(request, tmp_path_factory):
    """Our case and adapter, and peft's model with the same base and adapter."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny.write_random_checkpoint(folder, tiny.CONFIGS[request.param])
    decoder = tiny.load_decoder(folder)
    graph, state = nnx.split(decoder)
    case = Case(graph, nnx.to_pure_dict(state), decoder.config)
    adapter = random_adapter(case.config)
    save_adapter(folder / "adapter", adapter, case.config, SPEC, str(folder))
    model = peft.PeftModel.from_pretrained(reference.load(folder), folder / "adapter", is_trainable=True)
    return case, adapter, model, folder


def torch_loss(model, pairs, slots, hidden_weight):
    """Sample by sample, whole sequences, the teacher with the adapter switched off."""
    kls, distances, sample_means = [], [], []
    for pair in pairs:
        teacher = torch.tensor([pair.prompts.teacher_ids + pair.response_ids])
        student = torch.tensor([pair.prompts.student_ids + pair.response_ids])
        with torch.no_grad(), model.disable_adapter():
            t = model(teacher, output_hidden_states=True)
        s = model(student, output_hidden_states=True)
        count = len(pair.response_ids) + (slots is not PUBLISHED)
        tail = count + 2 if slots is SHARED else count
        kl = F.kl_div(
            s.logits[0, -count:].log_softmax(-1),
            t.logits[0, -count:].log_softmax(-1),
            log_target=True,
            reduction="none",
        ).sum(-1)
        layers = [
            (F.normalize(a[0, -tail:], dim=-1) - F.normalize(b[0, -tail:], dim=-1)).pow(2).sum(-1)
            for a, b in zip(t.hidden_states[:-1], s.hidden_states[:-1], strict=True)
        ]
        distance = torch.stack(layers).mean(0)
        kls.append(kl)
        distances.append(distance)
        sample_means.append(kl.mean() + hidden_weight * distance.mean())
    if slots is PUBLISHED:
        return torch.stack(sample_means).mean()
    return torch.cat(kls).mean() + hidden_weight * torch.cat(distances).mean()


def adapter_gradient(model, config, adapter):
    """peft's gradients as our adapter tree."""
    named = {name.replace(".default", ""): p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    tree = {}
    for module in adapter_modules(config):
        begin = 0
        for path, columns in module.columns.items():
            if path not in adapter:
                continue
            ranks = slice(begin, begin + adapter[path]["a"].shape[-1])  # of the projections that are fused
            begin = ranks.stop
            names = [f"base_model.model.{module.name.format(layer=layer)}" for layer in module.layers]
            a = [named[f"{name}.lora_A.weight"].T[:, ranks] for name in names]
            b = [named[f"{name}.lora_B.weight"].T[ranks, columns] for name in names]
            tree[path] = {"a": np.stack(a), "b": np.stack(b)}
    return tree


@pytest.mark.parametrize("slots", [OURS, SHARED, PUBLISHED], ids=["response", "shared", "published"])
def test_distillation_loss_and_gradients(setting, slots):
    case, adapter, model, _ = setting
    pairs = random_pairs()
    (loss, _), gradient = loss_and_grad(case, adapter, make_update(pairs, slots))
    model.zero_grad()
    theirs = torch_loss(model, pairs, slots, hidden_weight=2.44)
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-4)
    assert_close(gradient, adapter_gradient(model, case.config, adapter), 1e-4)


def assert_same_logits(case, adapter, theirs):
    """Our base with the adapter against a torch model."""
    tokens = tiny.random_tokens(2, 11)
    ours = logits(nnx.merge(case.graph, case.base), tokens, scaled_adapter(adapter, SPEC.scale))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_exported_adapter_in_peft(setting):
    case, adapter, model, _ = setting
    assert_same_logits(case, adapter, model)


def test_merged_export_in_transformers(setting, tmp_path):
    case, adapter, _, folder = setting
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_params(tmp_path, case.config, merge_adapter(case.base, adapter, SPEC.scale), np.float32)
    assert_same_logits(case, adapter, reference.load(tmp_path))


def test_adapter_saved_by_peft_is_read(setting, tmp_path):
    case, adapter, model, _ = setting
    model.save_pretrained(tmp_path)
    read, spec = load_adapter(tmp_path, case.config, case.base)
    assert (spec.rank, spec.alpha, spec.targets) == (SPEC.rank, SPEC.alpha, SPEC.targets)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    jax.tree.map(np.testing.assert_array_equal, read, jax.tree.map(np.asarray, adapter))


def logits(decoder, tokens, adapter):
    return np.asarray(decoder.logits(tiny.forward(decoder, tokens, adapter=adapter).final_BPD))
