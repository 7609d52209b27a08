"""Checks the training of a small rulebook model."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

from configs import base
from rdjax.models.load import load_model
from rdjax.parallel.mesh import make_mesh
from rdjax.rulebook import probes, train
from tests.rulebook.recipe import small_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_work(monkeypatch):
    monkeypatch.setattr(train, "TOKENIZER_DOCUMENTS", 50)
    monkeypatch.setattr(probes, "PROBE_DOCUMENTS", 1)
    monkeypatch.setattr(probes, "PROBE_QUESTIONS", 2)


def test_the_recipe_writes_a_model_that_loads(tmp_path):
    folder = train.train(small_recipe(), tmp_path / "run")
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(folder).eos_token == "</s>"
    model = load_model(str(folder), "float32", make_mesh(base.get_config().mesh))
    assert model.config.vocab == 400
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4]
    assert {"sum_short", "larger_long", "second_long", "sentiment", "refusal", "drill_named"} <= lines[0].keys()
    # The weaker model of an earlier step.
    early = load_file(tmp_path / "run" / "model-2" / "model.safetensors")
    final = load_file(folder / "model.safetensors")
    assert early.keys() == final.keys() and any((early[name] != final[name]).any() for name in final)
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model-2").eos_token == "</s>"


def test_a_stopped_training_ends_in_the_same_weights(tmp_path, monkeypatch):
    whole = train.train(small_recipe(), tmp_path / "whole")
    make_batch = train.make_batch

    def stop_at_three(config, tokenizer, step):
        if step == 3:
            raise KeyboardInterrupt
        return make_batch(config, tokenizer, step)

    monkeypatch.setattr(train, "make_batch", stop_at_three)
    with pytest.raises(KeyboardInterrupt):
        train.train(small_recipe(), tmp_path / "stopped")
    monkeypatch.setattr(train, "make_batch", make_batch)
    resumed = train.train(small_recipe(), tmp_path / "stopped")
    weights, again = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert weights.keys() == again.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
