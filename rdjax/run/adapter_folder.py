"""Writes the folder of a trained adapter: PEFT's files, the tokenizer, and how the adapter is prompted."""

import pathlib
from typing import Any

from ml_collections import config_dict

from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, LoraSpec
from rdjax.models.peft_config import CONFIG_FILE, WEIGHTS_FILE
from rdjax.models.peft_files import save_adapter
from rdjax.parallel.processes import is_first
from rdjax.storage.files import json_text, read_json_object, replace_text
from rdjax.storage.sums import write_sums

PROMPT_FILE = "rdjax_prompt.json"
PROMPT_FIELDS = ("template", "rule_place", "template_args")  # of the `task` section of a run's config


def write_adapter(
    folder: pathlib.Path, adapter: Adapter, spec: LoraSpec, model: LanguageModel, task: config_dict.ConfigDict
) -> None:
    """Writes an adapter that transformers, PEFT and vLLM load, with the tokenizer and chat template of its training.

    Args:
      task: the `task` section of the run's config.
    """
    if not is_first():
        return
    save_adapter(folder, adapter, model.config, spec, model.name)
    model.tokenizer.save_pretrained(folder)
    fields = {name: task[name] for name in PROMPT_FIELDS}
    replace_text(folder / PROMPT_FILE, json_text(fields))
    write_sums(folder, (WEIGHTS_FILE, CONFIG_FILE, PROMPT_FILE))


def read_prompt_fields(folder: pathlib.Path) -> dict[str, Any]:
    """Returns how an adapter was prompted in training; nothing for an adapter that rdjax did not train.

    Raises:
      UserError: the file is no JSON object.
    """
    path = folder / PROMPT_FILE
    fields = read_json_object(path, "") if path.exists() else {}
    return {name: fields[name] for name in PROMPT_FIELDS if name in fields}
