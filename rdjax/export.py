"""Merges an adapter into its base: `python -m rdjax.export --model=<m> --adapter=<workdir>/adapter --out=<folder>`.

The result is a Hugging Face folder that needs no PEFT. The adapter itself is in PEFT's format already.
"""

import json
import pathlib
import shutil

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
from rdjax.run.adapter_folder import CHAT_TEMPLATE, PROMPT_FILE, read_prompt_fields
from rdjax.run.card import card_text, write_card
from rdjax.storage.files import user_path
from rdjax.storage.records import Results, RunRecord, read_record
from rdjax.storage.workdir import RECORD, RESULTS

_MODEL = flags.DEFINE_string("model", "rulebook", "The base: a folder, a hub id, or an embedded model.")
_ADAPTER = flags.DEFINE_string("adapter", None, "The PEFT adapter to merge: a folder or hub id.", required=True)
_OUT = flags.DEFINE_string("out", None, "The new folder.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "float16", "bfloat16"], "Of the weights written.")

# What is not copied: weights in any format, and a repository's own files.
WEIGHTS = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", ".*")


def main(argv: list[str]) -> None:
    """Writes the merged model to a new folder."""
    cli.no_arguments(argv)
    out = user_path(_OUT.value)
    if out.exists():
        raise UserError(f"--out: {out} exists; a new folder is wanted")
    model = load_model(_MODEL.value, "float32", make_mesh(config_dict.ConfigDict(ONE_DEVICE)))
    folder = resolve_folder(_ADAPTER.value, "adapter")
    adapter, spec = load_adapter(folder, model.config, model.base)
    merged = merge_adapter(stack_layers(model.base), adapter, spec.scale)
    base = resolve_folder(_MODEL.value, "model")
    shutil.copytree(base, out, ignore=shutil.ignore_patterns(*WEIGHTS))
    write_merged_card(folder, out, FAMILIES[model.config.family].auto_class)
    for path in (folder / CHAT_TEMPLATE, folder / PROMPT_FILE):  # of the adapter's training
        if path.exists():
            shutil.copy(path, out)
    save_params(out, model.config, merged, jnp.dtype(_DTYPE.value), base)
    fields = read_fields(out)
    fields |= {"dtype": _DTYPE.value, "tie_word_embeddings": model.config.tied_embeddings}
    for name in ("torch_dtype", "quantization_config"):  # the older name of dtype; weights are written unquantised
        fields.pop(name, None)
    (out / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    print(f"wrote {out}")


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
            folder=out.name,
        )
        write_card(out, text)


if __name__ == "__main__":
    cli.run(main)
