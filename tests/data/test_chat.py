"""Chat templates: where the rule stands, what is learnt as the end, and what is refused."""

import json
import pathlib
import resource

import pytest

from rdjax.data.chat import read_arguments
from rdjax.data.pairs import make_pair, make_prompts, make_template
from rdjax.data.templates import Template
from rdjax.errors import UserError
from tests.data.test_pairs import byte_tokenizer

ROW = {"rule": "Rhyme.", "instruction": "", "input": "Hi", "output": "Why", "where": "t.jsonl, line 4"}
# ChatML, as Qwen and SmolLM write it, with </s> in the place of <|im_end|>.
CHATML = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
USERS_ONLY = CHATML.replace("{{ '<|' +", "{% if m.role != 'system' %}{{ '<|' +").replace(
    "'\n' }}{% endfor %}", "'\n' }}{% endif %}{% endfor %}"
)
RAISING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
# Llama 2: blanks around the answer.
BLANKS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' and enable_thinking is defined "
    "and not enable_thinking %}{{ '<think></think>' }}{% endif %}{{ m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think></think>' }}{% endif %}{% endif %}"
)


def chat(source: str, place: str = "", **arguments) -> Template:
    return make_template("chat", byte_tokenizer(source), place, arguments)


def test_the_rule_stands_in_the_system_message():
    prompts = make_prompts(chat(CHATML), ROW)
    assert prompts.teacher_text == "<|system|>Rhyme.</s>\n<|user|>Hi</s>\n<|assistant|>"
    assert prompts.student_text == "<|user|>Hi</s>\n<|assistant|>"


@pytest.mark.parametrize("source", [USERS_ONLY, RAISING], ids=["dropped", "raises"])
def test_the_rule_stands_before_the_users_message_where_there_is_no_system_message(source):
    template = chat(source)
    assert make_prompts(template, ROW).teacher_text == "<|user|>Rhyme.\n\nHi</s>\n<|assistant|>"
    assert "before the user's" in " ".join(template.notes)
    with pytest.raises(UserError, match=r"rule_place = system: .*accepted: user"):
        chat(source, "system")


def test_a_place_can_be_asked_for():
    assert make_prompts(chat(CHATML, "user"), ROW).teacher_text == "<|user|>Rhyme.\n\nHi</s>\n<|assistant|>"


def test_the_end_that_is_learnt_is_the_templates():
    tokenizer = byte_tokenizer(CHATML.replace("eos_token", "bos_token"))
    assert make_template("chat", tokenizer).end_id == tokenizer.bos_token_id
    assert make_template("alpaca", tokenizer).end_id == tokenizer.eos_token_id


def test_blanks_that_a_template_puts_around_an_answer_are_learnt_with_it():
    template = chat(BLANKS)
    assert byte_tokenizer(BLANKS).decode(make_pair(template, ROW).response_ids) == " Why "
    assert template.end_id == byte_tokenizer(BLANKS).eos_token_id


def test_a_template_that_ignores_the_generation_prompt_is_refused():
    with pytest.raises(UserError, match=r"ends a prompt with .* before an answer in a conversation"):
        chat(CHATML.replace("{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}", ""))


def test_a_template_that_drops_the_users_message_is_refused():
    with pytest.raises(UserError, match=r"leaves the user's message out"):
        chat("{{ '<|assistant|>' }}")


def test_thinking_is_off_unless_asked_for():
    assert make_prompts(chat(THINKING), ROW).student_text.endswith("<|assistant|><think></think>")
    assert make_pair(chat(THINKING), ROW).response_ids == make_pair(chat(CHATML), ROW).response_ids
    assert make_prompts(chat(THINKING, enable_thinking=True), ROW).student_text.endswith("<|assistant|>")


def test_a_date_is_the_same_every_day():
    template = chat("{{ strftime_now('%d %b %Y') }}" + CHATML)
    assert make_prompts(template, ROW).student_text.startswith("26 Jul 2024<|user|>")
    assert "2024-07-26" in " ".join(template.notes)


@pytest.mark.parametrize("call", ["strftime_now ('%d %b %Y')", "strftime_now( '%d %b %Y' )"])
def test_a_date_is_the_same_however_it_is_asked_for(call):
    guarded = "{% if strftime_now is defined %}{{ CALL }}{% endif %}".replace("CALL", call)
    assert make_prompts(chat(guarded + CHATML), ROW).student_text.startswith("26 Jul 2024<|user|>")


@pytest.mark.parametrize(
    "source", ["{% set form = '%d %b %Y' %}{{ strftime_now(form) }}", "{% set now = strftime_now %}{{ now('%d') }}"]
)
def test_a_date_that_cannot_be_fixed_is_refused(source):
    with pytest.raises(UserError, match=r"strftime_now in a form that rdjax cannot fix"):
        chat(source + CHATML)


def test_an_output_that_the_template_changes_is_refused():
    with pytest.raises(UserError, match=r"line 4: the chat template writes '</s>.*' where the output has ' '"):
        make_pair(chat(CHATML.replace("m.content", "(m.content | trim)")), ROW | {"output": "Why "})


@pytest.mark.parametrize("name", ["alpaca", "chat"])
def test_an_output_with_its_own_end_is_refused(name):
    with pytest.raises(UserError, match=r"t\.jsonl, line 4: the output has </s>"):
        make_pair(make_template(name, byte_tokenizer(CHATML)), ROW | {"output": "Why</s>"})


def test_a_rule_that_the_template_changes_is_refused():
    with pytest.raises(UserError, match=r"t\.jsonl, line 4: the chat template changes the rule"):
        make_prompts(chat(CHATML.replace("m.content", "m.content.replace('aa', 'b')")), ROW | {"rule": "Say aa."})


def test_earlier_turns_and_a_system_message_stand_before_the_input():
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A"}]
    history.append({"role": "assistant", "content": "B"})
    prompts = make_prompts(chat(CHATML), ROW | {"history": json.dumps(history)})
    rest = "<|user|>A</s>\n<|assistant|>B</s>\n<|user|>Hi</s>\n<|assistant|>"
    assert prompts.teacher_text == "<|system|>Rhyme.\n\nBe brief.</s>\n" + rest
    assert prompts.student_text == "<|system|>Be brief.</s>\n" + rest
    with pytest.raises(UserError, match=r"line 4: the chat template leaves out or changes the system's message 'Be br"):
        make_prompts(chat(USERS_ONLY), ROW | {"history": json.dumps(history)})
    with pytest.raises(UserError, match=r"t\.jsonl, line 4: config\.task\.template = chat: .*no system role"):
        make_prompts(chat(RAISING), ROW | {"history": json.dumps(history)})
    with pytest.raises(UserError, match=r"t\.jsonl, line 4: several messages need config\.task\.template = chat"):
        make_prompts(make_template("alpaca", byte_tokenizer()), ROW | {"history": json.dumps(history)})


def test_arguments_are_a_json_object():
    assert read_arguments("", "field") == {}
    assert read_arguments('{"a": 1}', "field") == {"a": 1}
    for text in ("{a}", "[]"):
        with pytest.raises(UserError, match="field"):
            read_arguments(text, "field")


def test_a_rule_that_the_template_drops_once_there_is_an_answer_stands_before_the_users_message():
    """Mistral 7B v0.3 and Nemo write a system message only while the user's turn is the last."""
    source = USERS_ONLY.replace(
        "{% if m.role != 'system' %}", "{% if m.role != 'system' or messages[-1].role == 'user' %}"
    )
    template = chat(source)
    assert template.rule_place == "user"
    assert make_pair(template, ROW).prompts.teacher_text == "<|user|>Rhyme.\n\nHi</s>\n<|assistant|>"


def test_an_answer_that_the_next_turn_ends_has_its_header_as_its_end():
    """As in GLM 4: an answer ends with what begins the user's turn."""
    turns = "{% for m in messages %}{{ (bos_token if m.role == 'user' else '[a]') + m.content }}{% endfor %}"
    template = chat(turns + "{% if add_generation_prompt %}[a]{% endif %}")
    assert template.end_id == byte_tokenizer().bos_token_id


def test_a_template_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr("rdjax.data.chat.MOST_SECONDS", 0.2)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match=r"chat template is not done after 0.2 seconds"):
        chat(loop + CHATML)


def test_a_template_that_writes_without_bounds_is_refused():
    with pytest.raises(UserError, match=r"the chat template makes 2\d{6} characters of 8; accepted"):
        chat(CHATML + "{{ 'x' * 2000000 }}")


def test_a_template_that_fails_on_an_output_names_the_row():
    """As Mistral's, which raises where a tool's call and an answer do not fit."""
    source = "{% if messages[-1].content == 'Why' %}{{ raise_exception('never why') }}{% endif %}" + CHATML
    with pytest.raises(UserError, match=r"^t\.jsonl, line 4: .*chat template fails .*never why"):
        make_pair(chat(source), ROW)


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="only Linux counts a process's memory")
@pytest.mark.parametrize("greedy", ["'x' * 10**11", "'x'.ljust(10**11)", "'%99999999999d' % 1"])
def test_a_template_that_asks_for_all_memory_is_refused(greedy):
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=r"chat template needs more than 1024 MiB of memory"):
        chat(CHATML + "{{ " + greedy + " }}")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_template_cannot_leave_its_sandbox(tmp_path):
    escape = "{{ cycler.__init__.__globals__.os.system('touch " + str(tmp_path / "mark") + "') }}"
    with pytest.raises(UserError, match=r"chat template fails .*unsafe"):
        chat(escape + CHATML)
    assert not (tmp_path / "mark").exists()
