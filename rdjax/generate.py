"""Answers prompts: `python -m rdjax.generate --model=rulebook --rule=@rule.md "12 @@@ 30 = ?"`.

Prompts are the positional arguments, or else the lines of standard input. Prints each response alone; a
line break inside a response stays one.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_dict

from rdjax.config import ONE_DEVICE
from rdjax.data.pairs import encode, render
from rdjax.errors import UserError
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import load_model, resolve_folder
from rdjax.models.lora import load_adapter
from rdjax.parallel.mesh import make_mesh, put, replicated
from rdjax.run import cli

_MODEL = flags.DEFINE_string("model", "rulebook", "A folder, a hub id, or rulebook(-language): embedded.")
_ADAPTER = flags.DEFINE_string("adapter", None, "A PEFT adapter: a folder or hub id.")
_RULE = flags.DEFINE_string("rule", "", "A rule to read first: its text, or @file.")
_TEMPLATE = flags.DEFINE_enum("template", "alpaca", ["alpaca", "chat"], "The prompt template.")
_RAW = flags.DEFINE_bool("raw", False, "Take prompts as they are, without a template.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 64, "Tokens of a response at most.", lower_bound=1)
_IGNORE_EOS = flags.DEFINE_bool("ignore_eos", False, "Go on past the end of sequence, to max_new_tokens.")
_BEAMS = flags.DEFINE_integer("beams", 1, "Above 1: beam search.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: the most likely token; above, tokens are drawn.", 0.0)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many of the most likely tokens; 0: from all.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the fewest tokens that have this probability.", 0.0, 1.0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)
_DTYPE = flags.DEFINE_enum("dtype", "auto", ["auto", "float32", "bfloat16"], "Of weights and activations.")

BATCH_SIZE = 32


def read_rule(given: str) -> str:
    """The rule's text, from the flag itself or from @file."""
    if not given.startswith("@") or given.startswith("@@"):
        return given
    path = pathlib.Path(given[1:])
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"--rule: {path} cannot be read ({error.strerror}); @ is followed by a file's name") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--rule: {path} cannot be read as UTF-8 text ({error})") from None


def main(argv: list[str]) -> None:
    prompts = argv or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise UserError("no prompt; give prompts as arguments or as lines of standard input")
    if _BEAMS.value > 1 and _TEMPERATURE.value:
        raise UserError("--beams above 1 and --temperature above 0 are two ways to decode; choose one")
    if (_TOP_K.value or _TOP_P.value < 1) and not _TEMPERATURE.value:
        raise UserError("--top_k and --top_p are about drawing tokens: give --temperature too")
    if _RAW.value and _RULE.value:
        raise UserError("--rule needs a template to stand in; leave out --raw")
    rule = read_rule(_RULE.value)
    model = load_model(_MODEL.value, _DTYPE.value, make_mesh(config_dict.ConfigDict(ONE_DEVICE)))
    adapter, scale = None, 1.0
    if _ADAPTER.value:
        adapter, spec = load_adapter(resolve_folder(_ADAPTER.value, "adapter"), model.config)
        adapter, scale = put(adapter, replicated(model.mesh)), spec.scale
    template = "raw" if _RAW.value else _TEMPLATE.value
    texts = prompts if _RAW.value else [render(template, model.tokenizer, rule, "", prompt) for prompt in prompts]
    ids = [encode(template, model.tokenizer, text)[0] for text in texts]
    for number, prompt in enumerate(ids, start=1):
        if len(prompt) + _MAX_NEW_TOKENS.value > model.config.max_positions:
            raise UserError(
                f"prompt {number}: {len(prompt)} tokens and --max_new_tokens = {_MAX_NEW_TOKENS.value} are over the "
                f"model's max_position_embeddings = {model.config.max_positions}"
            )
    rows = min(len(ids), BATCH_SIZE)
    decoding = Decoding(
        _MAX_NEW_TOKENS.value, _BEAMS.value, _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _IGNORE_EOS.value
    )
    for made, _ in generate(model, adapter, scale, ids, decoding, rows, _SEED.value):
        print(model.tokenizer.decode(made, skip_special_tokens=True))


if __name__ == "__main__":
    cli.run(main)
