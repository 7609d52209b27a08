import io
import json
import shutil
import sys
import types

import pytest
from absl.testing import flagsaver

from configs import base
from rdjax import generate
from rdjax.data.pairs import make_template
from rdjax.data.templates import alpaca_prompt
from rdjax.errors import UserError
from rdjax.generate import read_rule
from rdjax.generation.options import Decoding
from rdjax.models.families.registry import read_decoder_config
from rdjax.models.load import load_model
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.models.peft_files import save_adapter
from rdjax.parallel.mesh import make_mesh
from rdjax.run.adapter_folder import PROMPT_FILE, prompt_fields, write_adapter
from tests import tiny


def one_device():
    return make_mesh(base.get_config().mesh)


CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.write_random_checkpoint(folder, tiny.LLAMA2)
    return tiny.write_tokenizer(folder, CHAT)


@pytest.fixture
def command(model):
    """Runs the command's main with flags given by name."""

    def run(*prompts: str, **given) -> None:
        defaults = {"model": str(model), "max_new_tokens": 4}
        generate.flags.FLAGS.mark_as_parsed()
        with flagsaver.flagsaver(**defaults | given):
            generate.main(list(prompts))

    return run


class Recorder:
    """Stands for `generation.generate`: remembers what was asked and answers "ok" each time."""

    def __call__(self, model, adapter, scale, prompts, decoding, batch_size, seed):
        self.texts = [model.tokenizer.decode(ids) for ids in prompts]
        self.adapter, self.scale = adapter, scale
        self.decoding, self.seed = decoding, seed
        return [(model.tokenizer("ok", add_special_tokens=False)["input_ids"], True)] * len(prompts)


@pytest.fixture
def asked(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(generate, "generate", recorder)
    return recorder


def test_a_rule_is_its_text():
    assert read_rule("Answer in French.") == "Answer in French."
    assert read_rule("") == ""


def test_a_rule_of_a_file(tmp_path):
    (tmp_path / "rule.md").write_text("  Réponds en français.\n", encoding="utf-8")
    assert read_rule(f"@{tmp_path / 'rule.md'}") == "Réponds en français."


def test_a_rule_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--rule: .*none\.md: not found"):
        read_rule(f"@{tmp_path / 'none.md'}")
    with pytest.raises(UserError, match=r"--rule: .* is no file; accepted: a regular file"):
        read_rule(f"@{tmp_path}")


def test_a_rule_file_that_is_no_utf8(tmp_path):
    (tmp_path / "rule.md").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match=r"--rule: .*rule\.md: .*UTF-8"):
        read_rule(f"@{tmp_path / 'rule.md'}")


def test_a_rule_that_begins_with_the_papers_symbol():
    assert read_rule("@@@ is a new operation on two numbers.") == "@@@ is a new operation on two numbers."


def test_the_rule_fills_the_instruction(command, asked):
    command("one", "two", rule="Be brief.")
    assert asked.texts == ["<s>" + alpaca_prompt("Be brief.", text) for text in ("one", "two")]


def test_without_a_rule_the_prompt_is_the_students(command, asked):
    command("one")
    assert asked.texts == ["<s>" + alpaca_prompt("", "one")]


def test_chat_puts_the_rule_into_the_system_message(command, asked):
    command("one", rule="Be brief.", template="chat")
    assert asked.texts == ["<s>[system] Be brief.\n[user] one\n[assistant] "]


def test_raw_takes_the_prompt_as_it_is(command, asked):
    command("one ", raw=True)
    assert asked.texts == ["<s>one "]


def test_a_raw_prompt_that_begins_with_the_beginning_of_sequence_gets_no_second_one(command, asked):
    command("<s>one", raw=True)
    assert asked.texts == ["<s>one"]


def test_raw_and_a_rule_do_not_go_together(command):
    with pytest.raises(UserError, match="--rule needs a template to stand in; leave out --raw"):
        command("one", raw=True, rule="Be brief.")


def test_lines_of_standard_input_are_prompts(command, asked, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\n two \n")))
    command(raw=True)
    assert asked.texts == ["<s>one", "<s> two "]


def test_standard_input_is_utf8_with_or_without_a_mark(command, asked, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\r\n")))
    command(raw=True)
    assert asked.texts == ["<s>one"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n")))
    with pytest.raises(UserError, match="standard input cannot be read as UTF-8 text"):
        command(raw=True)
    with pytest.raises(UserError, match="a prompt is no UTF-8 text"):
        command("caf\udce9", raw=True)


def test_a_rule_that_names_a_file_is_not_taken_for_its_text(command, tmp_path):
    (tmp_path / "rule.md").write_text("Be brief.")
    with pytest.raises(UserError, match=r"is a file's name; to read it give --rule=@"):
        command("one", rule=str(tmp_path / "rule.md"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_temperature_is_finite(command, value):
    with pytest.raises(UserError, match="accepted: finite numbers"):
        command("one", temperature=value)


def test_a_prompt_without_tokens_is_an_error():
    model = types.SimpleNamespace(config=types.SimpleNamespace(vocab=10, max_positions=512))
    with pytest.raises(UserError, match="prompt 2 has no tokens; accepted: some text"):
        generate.check_prompts(model, [(1,), ()])


def test_no_prompt_is_an_error(command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(UserError, match="no prompt; give prompts as arguments or as lines of standard input"):
        command()


def test_the_responses_alone_are_printed(command, asked, capsys):
    command("one", "two")
    assert capsys.readouterr().out == "ok\nok\n"


def test_the_way_to_decode_is_passed_on(command, asked):
    command("one", max_new_tokens=9, ignore_eos=True, temperature=0.7, top_k=5, top_p=0.9, seed=3)
    drawn = Decoding(9, temperature=0.7, top_k=5, top_p=0.9, ignore_eos=True)
    assert (asked.decoding, asked.seed) == (drawn, 3)
    command("one", beams=4)
    assert asked.decoding == Decoding(4, beams=4)
    command("one")
    assert asked.decoding == Decoding(4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"beams": 2, "temperature": 1.0}, "--beams above 1 and --temperature above 0"),
        ({"top_k": 5}, "give --temperature too"),
        ({"top_p": 0.5}, "give --temperature too"),
    ],
)
def test_ways_to_decode_that_exclude_each_other(command, flags, message):
    with pytest.raises(UserError, match=message):
        command("one", **flags)


def test_an_adapter_is_loaded_with_its_scale(command, asked, model, tmp_path):
    spec = LoraSpec(rank=2, alpha=6.0, dropout=0.0, targets=("q_proj", "v_proj"))
    config = read_decoder_config(model)
    save_adapter(tmp_path, init_adapter(config, spec, seed=0), config, spec, str(model))
    command("one", adapter=str(tmp_path))
    assert set(asked.adapter) == {"self_attn.q_proj", "self_attn.v_proj"}
    assert asked.scale == 3.0
    command("one")
    assert asked.adapter is None


def test_an_adapter_is_prompted_as_it_was_trained(command, asked, model, tmp_path):
    """Takes the template in the adapter's folder, unless --template asks for another."""
    spec, loaded = LoraSpec(2, 6.0, 0.0, ("q_proj",)), load_model(str(model), "float32", one_device())
    loaded.tokenizer.chat_template = CHAT.replace("[", "{{ strftime_now('%Y') }}(").replace("]", ")")
    template = make_template("chat", loaded.tokenizer, "user")
    write_adapter(tmp_path, init_adapter(loaded.config, spec, seed=0), spec, loaded, template)
    assert "strftime_now" not in (tmp_path / "chat_template.jinja").read_text()
    command("one", adapter=str(tmp_path), rule="Be brief.")
    assert asked.texts == ["<s>2024(user) Be brief.\n\none\n2024(assistant) "]
    command("one", adapter=str(tmp_path), template="alpaca")
    assert asked.texts[0].startswith("<s>Below is an instruction")
    command("one")
    assert asked.texts[0].startswith("<s>Below is an instruction")


def test_a_merged_model_is_prompted_as_it_was_trained(command, asked, model, tmp_path):
    merged = shutil.copytree(model, tmp_path / "merged")
    template = make_template("chat", load_model(str(merged), "float32", one_device()).tokenizer)
    (merged / PROMPT_FILE).write_text(json.dumps(prompt_fields(template)))
    command("one", model=str(merged))
    assert asked.texts == ["<s>[user] one\n[assistant] "]


def test_an_adapter_that_is_not_there(command, tmp_path):
    with pytest.raises(UserError, match=r"adapter_config\.json: not found"):
        command("one", adapter=str(tmp_path))


def test_answers_do_not_depend_on_their_neighbours(command, capsys):
    prompts = ("one", "a much longer prompt than the others", "three")
    command(*prompts, raw=True, ignore_eos=True)
    together = capsys.readouterr().out
    for prompt in prompts:
        command(prompt, raw=True, ignore_eos=True)
    assert capsys.readouterr().out == together
    assert together.strip()
