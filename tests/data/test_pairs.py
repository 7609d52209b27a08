import dataclasses
import functools
import json
import pathlib
import tempfile

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rdjax.data.pairs import Prompts, check_lengths, encode, make_pair, make_prompts, make_template
from rdjax.data.templates import alpaca_prompt
from rdjax.errors import UserError
from tests import tiny

# Writes BOS itself and, without a system message, a default one.
CHAT = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}[system]\nBe kind.\n{% endif %}"
    "{% for message in messages %}[{{ message.role }}]\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}[user]"

ROW = {
    "rule": "Answer in French.",
    "instruction": "",
    "input": "Good day",
    "output": "Bonjour",
    "where": "t.jsonl, row 3",
}
OWN = ROW | {"instruction": "Greet back."}
TEMPLATES = ("alpaca", "chat")


@functools.cache
def byte_tokenizer(chat_template: str = CHAT) -> PreTrainedTokenizerFast:
    """One token a byte: ids stand for text."""
    with tempfile.TemporaryDirectory() as folder:
        return AutoTokenizer.from_pretrained(tiny.write_tokenizer(pathlib.Path(folder), chat_template))


def melting_tokenizer() -> PreTrainedTokenizerFast:
    """Joins a line break and the space behind it, and ends every call with the end of sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline, space = "\u010a", "\u0120"
    vocab = {token: number for number, token in enumerate([*alphabet, newline + space, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(newline, space)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    specials = [(name, vocab[name]) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def prompts_of(row: dict[str, str], template: str = "alpaca") -> Prompts:
    return make_prompts(make_template(template, byte_tokenizer()), row)


def shared_text(prompts: Prompts) -> str:
    """The shared tail as text, the same on both sides."""
    tails = [ids[len(ids) - prompts.shared :] for ids in (prompts.teacher_ids, prompts.student_ids)]
    assert tails[0] == tails[1]
    return byte_tokenizer().decode(tails[0])


def test_alpaca_prompts():
    prompts = prompts_of(OWN)
    assert prompts.teacher_text == alpaca_prompt("Answer in French.\n\nGreet back.", "Good day")
    assert prompts.student_text == alpaca_prompt("Greet back.", "Good day")
    assert prompts_of(ROW).student_text == alpaca_prompt("", "Good day")


def test_chat_puts_the_rule_into_the_system_message():
    prompts = prompts_of(OWN, "chat")
    assert prompts.teacher_text == ("<s>[system]\nAnswer in French.\n[user]\nGreet back.\n\nGood day\n[assistant]\n")
    assert prompts.student_text == "<s>[system]\nBe kind.\n[user]\nGreet back.\n\nGood day\n[assistant]\n"


@pytest.mark.parametrize("template", TEMPLATES)
def test_bos_stands_once_and_first(template):
    tokenizer, prompts = byte_tokenizer(), prompts_of(ROW, template)
    pair = make_pair(make_template(template, tokenizer), ROW)
    for ids in (prompts.teacher_ids, prompts.student_ids):
        assert ids[0] == tokenizer.bos_token_id
        assert (ids + pair.response_ids).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_the_text(template):
    prompts = prompts_of(OWN, template)
    for text, ids in ((prompts.teacher_text, prompts.teacher_ids), (prompts.student_text, prompts.student_ids)):
        assert byte_tokenizer().decode(ids, skip_special_tokens=True) == text.removeprefix("<s>")


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_response_has_the_same_ids_behind_both_prompts(template):
    tokenizer, prompts = byte_tokenizer(), prompts_of(OWN, template)
    pair = make_pair(make_template(template, tokenizer), OWN | {"output": "Ça va 🎉?"})
    assert tokenizer.decode(pair.response_ids) == "Ça va 🎉?"
    for text, ids in ((prompts.teacher_text, prompts.teacher_ids), (prompts.student_text, prompts.student_ids)):
        assert encode(make_template(template, tokenizer), text + "Ça va 🎉?")[0] == ids + pair.response_ids
    assert pair.ended


def test_the_shared_tail_is_the_text_after_the_rule():
    assert shared_text(prompts_of(ROW)) == "\n\n### Input:\nGood day\n\n### Response:\n"


def test_the_shared_tail_takes_in_the_rows_own_instruction():
    # Of the blank line between rule and instruction the student has one line break, its header's.
    assert shared_text(prompts_of(OWN)) == "\nGreet back.\n\n### Input:\nGood day\n\n### Response:\n"


def test_the_shared_tail_of_a_chat_never_reaches_into_the_rule():
    # The student's default system message ends like the rule.
    prompts = prompts_of(ROW | {"rule": "You must Be kind."}, "chat")
    assert shared_text(prompts) == "\n[user]\nGood day\n[assistant]\n"


def test_the_shared_tail_counts_tokens_where_characters_take_several():
    tail = "\n\n### Input:\n你好 🎉\n\n### Response:\n"
    prompts = prompts_of(ROW | {"rule": "用中文回答 😀 🎉", "input": "你好 🎉"})
    assert prompts.shared == len(tail.encode()) > len(tail)
    assert shared_text(prompts) == tail


def test_white_space_around_the_rule_changes_nothing_after_it():
    assert shared_text(prompts_of(ROW | {"rule": "  Answer in French.\n"})).endswith(
        "\n\n### Input:\nGood day\n\n### Response:\n"
    )


@pytest.mark.parametrize("field", ["instruction", "input", "history"])
def test_a_row_that_has_the_rule_in_its_own_text_is_refused(field):
    """Alpaca files have it in the instruction, chats in the system message; the student would read it."""
    text = "Please. Answer in French. Thanks."
    value = json.dumps([{"role": "system", "content": text}]) if field == "history" else text
    with pytest.raises(UserError, match=r"row 3: the row's own text has the rule"):
        prompts_of(ROW | {field: value}, "chat")
    prompts_of(ROW | {"rule": "French", field: value}, "chat")  # a word that any text may have


@pytest.mark.parametrize("output", ["Bonjour</s>", "Bon</s>jour", "Bonjour </s> "])
def test_an_output_with_its_end_is_refused_in_tests_too(output):
    with pytest.raises(UserError, match=r"row 3: the output has </s>, which is added"):
        prompts_of(ROW | {"output": output})


def test_where_names_the_row():
    assert prompts_of(ROW).where == "t.jsonl, row 3"


def test_offsets_are_the_characters_that_tokens_begin_at():
    ids, starts = encode(make_template("alpaca", byte_tokenizer()), "aé🎉b")
    assert len(ids) == len(starts) == 1 + 1 + 2 + 4 + 1
    assert [starts[at] for at in (1, 2, 4, 8)] == [0, 1, 2, 3]


def test_an_end_that_the_tokenizers_call_adds_is_taken_off():
    tokenizer = melting_tokenizer()
    ids, starts = encode(make_template("alpaca", tokenizer), "ab")
    assert len(ids) == len(starts) == 3
    assert tokenizer.eos_token_id not in ids


def test_an_end_that_stands_in_the_text_stays():
    assert encode(make_template("chat", byte_tokenizer()), "ab</s>")[0][-1] == byte_tokenizer().eos_token_id


def test_an_output_that_melts_into_the_prompt_is_an_error():
    tokenizer = melting_tokenizer()
    template = make_template("alpaca", tokenizer)
    with pytest.raises(UserError, match=r"t\.jsonl, row 3: .*' Bonjour'.* must not begin with white space"):
        make_pair(template, ROW | {"output": " Bonjour"})
    assert make_pair(template, ROW).response_ids


@pytest.mark.parametrize("response", ["", " \n\t"])
def test_an_empty_output_is_an_error(response):
    with pytest.raises(UserError, match=r"t\.jsonl, row 3: the field output is empty"):
        make_pair(make_template("alpaca", byte_tokenizer()), ROW | {"output": response})


def test_a_failing_chat_template_is_the_users_to_know():
    with pytest.raises(UserError, match=r"config\.task\.rule_place = system: .*accepted: user"):
        make_template("chat", byte_tokenizer(NO_SYSTEM), "system")


def test_a_tokenizer_without_chat_template_is_an_error():
    tokenizer = melting_tokenizer()
    with pytest.raises(UserError, match=r"config\.task\.template = chat"):
        make_template("chat", tokenizer)


def test_lengths_count_the_longer_prompt_the_response_and_its_end():
    pair = make_pair(make_template("alpaca", byte_tokenizer()), ROW)
    length = 1 + len(pair.prompts.teacher_text) + len("Bonjour") + 1
    other = dataclasses.replace(pair, response_ids=(1,))
    assert check_lengths([other, pair], length, "task.max_length") == length
    assert check_lengths([], 1, "task.max_length") == 0


def test_lengths_count_no_end_of_a_response_that_has_none():
    pair = dataclasses.replace(make_pair(make_template("alpaca", byte_tokenizer()), ROW), ended=False)
    assert check_lengths([pair], 10**6, "") == 1 + len(pair.prompts.teacher_text) + len("Bonjour")


def test_an_over_long_row_names_file_row_and_limit():
    pair = make_pair(make_template("alpaca", byte_tokenizer()), ROW)
    length = check_lengths([pair], 10**6, "")
    with pytest.raises(UserError, match=rf"t\.jsonl, row 3: .* {length} tokens, over task\.max_length = {length - 1};"):
        check_lengths([pair], length - 1, "task.max_length")
