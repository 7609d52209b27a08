import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

from configs import base
from configs import rulebook as recipe
from rdjax.data.rules.refusal import ACTS
from rdjax.data.rules.sentiment import FIELDS
from rdjax.models.load import load_model
from rdjax.parallel.mesh import make_mesh
from rdjax.rulebook import __main__ as rulebook

SMALL = {
    "model.vocab": 400,
    "model.width": 16,
    "model.layers": 2,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.feed_forward": 32,
    "data.rows": 2,
    "data.rules_by": 2,
    "data.drill_rows": 1,
    "data.named_from": 1,
    "data.drills_alone": 1,
    "optimizer.warmup_steps": 1,
    "optimizer.low_until": 2,
    "optimizer.decay_from": 2,
    "train.steps": 4,
    "train.save_every": 2,
    "train.probe_every": 4,
    "train.keep": (2,),
}


@pytest.fixture(autouse=True)
def small_work(monkeypatch):
    monkeypatch.setattr(rulebook, "TOKENIZER_DOCUMENTS", 50)
    monkeypatch.setattr(rulebook, "PROBE_DOCUMENTS", 1)
    monkeypatch.setattr(rulebook, "PROBE_QUESTIONS", 2)


def small_recipe(**changes):
    config = recipe.get_config()
    config.update_from_flattened_dict(SMALL | changes)
    return config


@pytest.mark.slow
def test_the_recipe_writes_a_model_that_loads(tmp_path):
    folder = rulebook.train(small_recipe(), tmp_path / "run")
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(folder).eos_token == "</s>"
    model = load_model(str(folder), "float32", make_mesh(base.get_config().mesh))
    assert model.config.vocab == 400
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4]
    assert {"sum_short", "larger_long", "second_long", "sentiment", "refusal", "drill_named"} <= lines[0].keys()
    # A weaker model of the way there.
    early = load_file(tmp_path / "run" / "model-2" / "model.safetensors")
    final = load_file(folder / "model.safetensors")
    assert early.keys() == final.keys() and any((early[name] != final[name]).any() for name in final)
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model-2").eos_token == "</s>"


@pytest.mark.slow
def test_a_stopped_training_ends_in_the_same_weights(tmp_path, monkeypatch):
    whole = rulebook.train(small_recipe(), tmp_path / "whole")
    make_batch = rulebook.make_batch

    def stop_at_three(config, tokenizer, step):
        if step == 3:
            raise KeyboardInterrupt
        return make_batch(config, tokenizer, step)

    monkeypatch.setattr(rulebook, "make_batch", stop_at_three)
    with pytest.raises(KeyboardInterrupt):
        rulebook.train(small_recipe(), tmp_path / "stopped")
    monkeypatch.setattr(rulebook, "make_batch", make_batch)
    resumed = rulebook.train(small_recipe(), tmp_path / "stopped")
    weights, again = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert weights.keys() == again.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


KINDS = (FIELDS | ACTS).keys()


def named_subjects(config, step: int) -> list[str]:
    """What the drills of a step ask about."""
    asked = [question for document in rulebook.make_documents(config, step) for question, _ in document.questions]
    return [question.removeprefix("What about ").rstrip("?") for question in asked]


def test_the_curriculum():
    config = small_recipe(**{"data.rows": 200, "data.drills_alone": 10, "data.rules_by": 110, "data.drills": 0.25})
    config.data.update({"drill_rows": 20, "named_from": 5})

    def shares(step: int) -> tuple[float, float]:
        """Of documents with an instruction, and of drills."""
        documents = rulebook.make_documents(config, step)
        instructed = [document.prefix != rulebook.HEAD for document in documents]
        drills = [document.questions[0][0].startswith("What about") for document in documents]
        return sum(instructed) / len(documents), sum(drills) / len(documents)

    assert shares(0) == shares(9) == (1, 1)
    words = {kind for step in (0, 4) for kind in named_subjects(config, step)}
    assert not words & KINDS and len(words) > 20
    assert len(set(named_subjects(config, 9)) & KINDS) > 5
    instructed, drills = shares(10)
    assert instructed == drills and 0.15 < drills < 0.35
    instructed, drills = shares(60)
    assert 0.45 < instructed < 0.75 and 0.15 < drills < 0.35
    instructed, drills = shares(110)
    assert instructed > 0.85 and 0.15 < drills < 0.35


def test_probed_rules_are_never_the_papers():
    texts = [document.prefix for group in rulebook.probe_documents(0).values() for document in group]
    assert texts
    assert not any("@@@" in text or "a + b + 1." in text for text in texts)
