"""Checks what an adapter's folder says: how to load and prompt it, and what it was trained on."""

import json
from types import SimpleNamespace

import pytest

from rdjax.data.pairs import make_template
from rdjax.models.families.registry import FAMILIES
from rdjax.run.adapter_folder import BASE, CHAT_TEMPLATE, PROMPT_FILE, adapter_notes, prompt_fields
from rdjax.run.card import heading, limits, use_text
from tests.data.test_chat import CHATML, THINKING
from tests.data.test_pairs import byte_tokenizer


def test_the_arguments_of_training_are_given_to_the_chat_template():
    prompt = prompt_fields(make_template("chat", byte_tokenizer(THINKING), arguments={"depth": 2}))
    program = use_text("base", "AutoModelForCausalLM", prompt, merged=False, folder="adapter")
    assert "return_dict=True, enable_thinking=False, depth=2)" in program


def test_what_differs_from_the_training_of_an_adapter_is_told(tmp_path):
    """Another base, which may have the same shapes; another template; another text of the same template."""
    template, model = make_template("chat", byte_tokenizer(CHATML)), SimpleNamespace(name="m", fingerprint="1")
    (tmp_path / PROMPT_FILE).write_text(json.dumps({**prompt_fields(template), BASE: "1"}))
    (tmp_path / CHAT_TEMPLATE).write_text(template.source)
    assert adapter_notes(tmp_path, model, template) == []
    (note,) = adapter_notes(tmp_path, SimpleNamespace(name="m", fingerprint="2"))
    assert "was trained on other weights or with another tokenizer than m has" in note
    for other in (make_template("alpaca", byte_tokenizer(CHATML)), make_template("chat", byte_tokenizer(THINKING))):
        (note,) = adapter_notes(tmp_path, model, other)
        assert "was trained with the chat template, and is prompted otherwise here" in note
    assert adapter_notes(tmp_path / "of_another_program", model, template) == []


@pytest.mark.parametrize("merged", [False, True])
def test_a_wrapped_decoder_is_loaded_with_its_other_parts(merged):
    prompt = prompt_fields(make_template("alpaca", byte_tokenizer(THINKING)))
    program = use_text("base", FAMILIES["qwen3_5"].auto_class, prompt, merged, folder="adapter")
    assert program.count("AutoModelForImageTextToText") == 2 and "AutoModelForCausalLM" not in program


def test_the_card_of_a_run_without_scores_does_not_speak_of_any():
    record = {"config": {"method": "rule_distill_base", "task": {}}}
    assert not any("gap closed" in limit for limit in limits({"splits": {}, "metric": {}}, record))


def test_the_card_of_a_rule_that_was_removed_says_so():
    config = {"method": "rule_distill_base", "task": {"remove_rule": True}}
    title, text = heading(config, "a LoRA adapter")
    assert title == "# A rule, removed from a LoRA adapter" and "has unlearnt the rule below" in text
    assert "follows the rule below" in heading({**config, "task": {}}, "a model")[1]
