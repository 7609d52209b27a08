"""Merges an adapter into its base: `python -m rdjax.export --model=<m> --adapter=<workdir>/adapter --out=<folder>`.

The result is a Hugging Face folder that needs no PEFT. The adapter itself is in PEFT's format already.
"""

import pathlib
import shutil
from collections.abc import Sequence

import jax.numpy as jnp
from absl import flags
from ml_collections import config_dict

from rdjax.config import ONE_DEVICE
from rdjax.errors import UserError
from rdjax.models.families.registry import FAMILIES, read_fields
from rdjax.models.layers import stack_layers
from rdjax.models.load import load_model, resolve_folder
from rdjax.models.lora import merge_adapter
from rdjax.models.peft_files import load_adapter
from rdjax.models.weights import save_params
from rdjax.parallel.mesh import make_mesh
from rdjax.run import cli
from rdjax.run.adapter_folder import CHAT_TEMPLATE, ENDS, PROMPT_FILE, adapter_notes, read_prompt_fields
from rdjax.run.card import card_text, write_card
from rdjax.storage.files import copy_folder, json_text, making_folder, read_json_object, replace_text, user_path
from rdjax.storage.records import Results, RunRecord, read_record
from rdjax.storage.workdir import RECORD, RESULTS

_MODEL = flags.DEFINE_string("model", "rulebook", "The base: a folder, a hub id, or an embedded model.")
_ADAPTER = flags.DEFINE_string("adapter", None, "The PEFT adapter to merge: a folder or hub id.", required=True)
_OUT = flags.DEFINE_string("out", None, "The new folder.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"], "Of the weights written.")

# What is not copied: weights in any format, a repository's own files, the card of the base.
LEFT_OUT = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", ".*")
LEFT_OUT += ("README.md",)
GENERATION = "generation_config.json"


def main(argv: list[str]) -> None:
    """Writes the merged model to a new folder."""
    cli.no_arguments(argv)
    out = user_path(_OUT.value)
    if out.exists():
        raise UserError(f"--out: {out} exists; a new folder is wanted")
    model = load_model(_MODEL.value, "float32", make_mesh(config_dict.ConfigDict(ONE_DEVICE)))
    folder = resolve_folder(_ADAPTER.value, "adapter")
    for note in adapter_notes(folder, model):
        print(f"note: {note}")
    adapter, spec = load_adapter(folder, model.config, model.base)
    merged = merge_adapter(stack_layers(model.base), adapter, spec.scale)
    base = resolve_folder(_MODEL.value, "model")
    with making_folder(out) as part:
        copy_folder(base, part, LEFT_OUT)
        write_merged_card(folder, part, FAMILIES[model.config.family].auto_class)
        for path in (folder / CHAT_TEMPLATE, folder / PROMPT_FILE):  # of the adapter's training
            if path.exists():
                shutil.copyfile(path, part / path.name)
        save_params(part, model.config, merged, jnp.dtype(_DTYPE.value), base)
        write_configs(part, model.config.tied_embeddings, read_prompt_fields(folder).get(ENDS))
    print(f"wrote {out}")


def write_configs(out: pathlib.Path, tied: bool, ends: Sequence[int] | None) -> None:
    """Adapts config.json to the weights that were written, and generation_config.json to the adapter's training.

    Args:
      tied: whether the head is the embedding.
      ends: the tokens that ended responses in training; None: those of the base.
    """
    fields = read_fields(out) | {"dtype": _DTYPE.value, "tie_word_embeddings": tied}
    for name in ("torch_dtype", "quantization_config"):  # the older name of dtype; weights are written unquantised
        fields.pop(name, None)
    replace_text(out / "config.json", json_text(fields))
    if ends:
        path = out / GENERATION
        generation = read_json_object(path, "") if path.exists() else {}
        replace_text(path, json_text(generation | {ENDS: list(ends)}))


def write_merged_card(adapter: pathlib.Path, out: pathlib.Path, auto_class: str) -> None:
    """Writes the model card of the merged model, where the adapter is in the workdir of its training.

    Args:
      auto_class: of transformers, which loads the model.
    """
    scores, record = adapter.parent / RESULTS, adapter.parent / RECORD
    if adapter.name == "adapter" and scores.exists() and record.exists():
        prompt = {"template": "alpaca", "template_args": "", **read_prompt_fields(adapter)}
        text = card_text(
            read_record(scores, Results),
            read_record(record, RunRecord),
            _MODEL.value,
            auto_class,
            prompt,
            merged=True,
            folder=user_path(_OUT.value).name,
        )
        write_card(out, text)


if __name__ == "__main__":
    cli.run(main)
