"""Checks the program in a model card: the class that loads the model, and how it is prompted."""

import pytest

from rdjax.data.pairs import make_template
from rdjax.models.families.registry import FAMILIES
from rdjax.run.adapter_folder import prompt_fields
from rdjax.run.card import use_text
from tests.data.test_chat import THINKING
from tests.data.test_pairs import byte_tokenizer


def test_the_arguments_of_training_are_given_to_the_chat_template():
    prompt = prompt_fields(make_template("chat", byte_tokenizer(THINKING), arguments={"depth": 2}))
    program = use_text("base", "AutoModelForCausalLM", prompt, merged=False, folder="adapter")
    assert "return_dict=True, enable_thinking=False, depth=2)" in program


@pytest.mark.parametrize("merged", [False, True])
def test_a_wrapped_decoder_is_loaded_with_its_other_parts(merged):
    prompt = prompt_fields(make_template("alpaca", byte_tokenizer(THINKING)))
    program = use_text("base", FAMILIES["qwen3_5"].auto_class, prompt, merged, folder="adapter")
    assert program.count("AutoModelForImageTextToText") == 2 and "AutoModelForCausalLM" not in program
