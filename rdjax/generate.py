"""Answers prompts: `python -m rdjax.generate --model=rulebook --rule=@rule.md "12 @@@ 30 = ?"`.

Prompts are the positional arguments or, without any, the lines of standard input. Prints the responses alone; line
breaks inside a response are printed as they are.
"""

import math
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_dict

from rdjax.config import ONE_DEVICE
from rdjax.data.chat import read_arguments
from rdjax.data.pairs import encode, make_template, render
from rdjax.data.rows import input_row
from rdjax.data.templates import Template
from rdjax.errors import UserError
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import LanguageModel, check_embedded, ended_by, fit_context, load_model, resolve_folder
from rdjax.models.peft_files import load_adapter
from rdjax.parallel.mesh import make_mesh, put, replicated
from rdjax.run import cli
from rdjax.run.adapter_folder import CHAT_TEMPLATE, PROMPT_FILE, adapter_notes, read_prompt_fields
from rdjax.storage.files import HALF, read_text, user_path

_MODEL = flags.DEFINE_string("model", "rulebook", "A folder, a hub id, or rulebook(-language): embedded.")
_ADAPTER = flags.DEFINE_string("adapter", None, "A PEFT adapter: a folder or hub id.")
_RULE = flags.DEFINE_string("rule", "", "A rule to read first: its text, or @file.")
_TEMPLATE = flags.DEFINE_enum(
    "template",
    None,
    ["alpaca", "chat"],
    "The prompt template; default: that of the adapter's (or the merged model's) training, or alpaca.",
)
_RAW = flags.DEFINE_bool("raw", False, "Use prompts as they are, without a template.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "The most tokens of a response.", lower_bound=1)
_IGNORE_EOS = flags.DEFINE_bool("ignore_eos", False, "Continue past the end of sequence, up to max_new_tokens.")
_BEAMS = flags.DEFINE_integer("beams", 1, "Above 1: beam search.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: the most likely token; above 0: tokens are drawn.", 0.0)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from this many of the most likely tokens; 0: from all.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens that have this probability.", 0.0, 1.0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the draws.", lower_bound=0, upper_bound=2**31 - 1)
_DTYPE = flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Of weights and activations.")

BATCH_SIZE = 32  # prompts that are answered at once


def read_rule(flag: str) -> str:
    """Returns the rule's text: the flag itself, or the content of a file for "@file".

    A flag that begins with "@@" is a text: the published arithmetic rule begins with "@@@".

    Raises:
      UserError: the file cannot be read.
    """
    if not flag.startswith("@") or flag.startswith("@@"):
        if flag and len(flag) < 255 and "\0" not in flag and pathlib.Path(flag).is_file():
            raise UserError(f"--rule={flag} is a file's name; to read it give --rule=@{flag}")
        return flag
    path = user_path(flag[1:])
    try:
        return read_text(path, f"{path}: not found; @ is followed by a file's name").strip()
    except UserError as error:
        raise UserError(f"--rule: {error}") from None


def read_input() -> str:
    """Reads all of standard input as UTF-8, with or without a byte order mark.

    Raises:
      UserError: it is no UTF-8 text.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input cannot be read as UTF-8 text ({error})") from None


def check_flags() -> None:
    """Checks that the flags go together; UserError names those that do not."""
    if not (math.isfinite(_TEMPERATURE.value) and math.isfinite(_TOP_P.value)):
        raise UserError(f"--temperature={_TEMPERATURE.value} and --top_p={_TOP_P.value}; accepted: finite numbers")
    if _BEAMS.value > 1 and _TEMPERATURE.value:
        raise UserError("--beams above 1 and --temperature above 0 are two ways to decode; choose one")
    if (_TOP_K.value or _TOP_P.value < 1) and not _TEMPERATURE.value:
        raise UserError("--top_k and --top_p are about drawing tokens: give --temperature too")
    if _RAW.value and _RULE.value:
        raise UserError("--rule needs a template to stand in; leave out --raw")


def prompt_template(model: LanguageModel, trained: pathlib.Path) -> Template:
    """Returns the template that the flags ask for, or that of training.

    Args:
      trained: the folder of the adapter, or of a model that may have one merged into it.
    """
    if _RAW.value:
        return make_template("raw", model.tokenizer)
    fields = read_prompt_fields(trained)
    name = _TEMPLATE.value or fields.get("template", "alpaca")
    if name != fields.get("template"):
        return make_template(name, model.tokenizer)
    path = trained / CHAT_TEMPLATE
    source = read_text(path, f"{path}: not found") if path.exists() else ""
    arguments = read_arguments(fields.get("template_args", ""), f"{trained / PROMPT_FILE}: template_args")
    return make_template(name, model.tokenizer, fields.get("rule_place", ""), arguments, source)


def encode_prompts(template: Template, rule: str, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Renders prompts with the rule in the template, unless --raw is given, and encodes them."""
    if template.name != "raw":
        prompts = [render(template, input_row(prompt, "a prompt"), rule) for prompt in prompts]
    return [encode(template, prompt)[0] for prompt in prompts]


def check_prompts(model: LanguageModel, ids: Sequence[tuple[int, ...]]) -> None:
    """Checks that the model has an embedding for each token, and room for a response behind each prompt.

    Raises:
      UserError: names the first prompt that does not fit.
    """
    for number, tokens in enumerate(ids, start=1):
        if not tokens:
            raise UserError(f"prompt {number} has no tokens; accepted: some text")
        check_embedded(model, tokens, f"prompt {number}")
        if len(tokens) + _MAX_NEW_TOKENS.value > model.config.max_positions:
            raise UserError(
                f"prompt {number}: {len(tokens)} tokens and --max_new_tokens = {_MAX_NEW_TOKENS.value} are over the "
                f"model's max_position_embeddings = {model.config.max_positions}"
            )


def main(argv: list[str]) -> None:
    """Prints the model's response to each prompt."""
    if any(HALF.search(prompt) for prompt in argv):
        raise UserError("a prompt is no UTF-8 text; accepted: prompts in UTF-8")
    prompts = argv or [line.rstrip("\r") for line in read_input().split("\n") if line.strip()]
    if not prompts:
        raise UserError("no prompt; give prompts as arguments or as lines of standard input")
    check_flags()
    rule = read_rule(_RULE.value)
    model = load_model(_MODEL.value, _DTYPE.value, make_mesh(config_dict.ConfigDict(ONE_DEVICE)))
    adapter, scale = None, 1.0
    trained = resolve_folder(*((_ADAPTER.value, "adapter") if _ADAPTER.value else (_MODEL.value, "model")))
    if _ADAPTER.value:
        for note in adapter_notes(trained, model):
            print(f"note: {note}", file=sys.stderr)
        adapter, spec = load_adapter(trained, model.config, model.base)
        adapter, scale = put(adapter, replicated(model.mesh)), spec.scale
    template = prompt_template(model, trained)
    ids = encode_prompts(template, rule, prompts)
    model = fit_context(ended_by(model, template.end_id), max(map(len, ids)) + _MAX_NEW_TOKENS.value)
    check_prompts(model, ids)
    decoding = Decoding(
        _MAX_NEW_TOKENS.value, _BEAMS.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _IGNORE_EOS.value
    )
    rows = min(len(ids), BATCH_SIZE)
    for response, _ in generate(model, adapter, scale, ids, decoding, rows, _SEED.value):
        print(model.tokenizer.decode(response, skip_special_tokens=True))


if __name__ == "__main__":
    cli.run(main)
