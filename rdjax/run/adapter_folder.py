"""Writes the folder of a trained adapter: PEFT's files, the tokenizer, and how the adapter is prompted."""

import json
import pathlib
from typing import Any

from rdjax.data.templates import Template
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, LoraSpec
from rdjax.models.peft_config import CONFIG_FILE, WEIGHTS_FILE
from rdjax.models.peft_files import save_adapter
from rdjax.parallel.processes import is_first
from rdjax.storage.files import json_text, read_json_object, read_text, replace_text
from rdjax.storage.sums import write_sums

PROMPT_FILE = "rdjax_prompt.json"
PROMPT_FIELDS = ("template", "rule_place", "template_args")
ENDS = "eos_token_id"  # the tokens that ended responses in training: the base's own files may lack the template's
CHAT_TEMPLATE = "chat_template.jinja"
BASE = "base_fingerprint"  # of the model that the adapter was trained on


def write_adapter(
    folder: pathlib.Path, adapter: Adapter, spec: LoraSpec, model: LanguageModel, template: Template
) -> None:
    """Writes an adapter that transformers, PEFT and vLLM load, with the tokenizer and chat template of its training.

    A date that the training fixed is fixed in the chat template too.
    """
    if not is_first():
        return
    save_adapter(folder, adapter, model.config, spec, model.name)
    model.tokenizer.save_pretrained(folder)
    if template.name == "chat":
        replace_text(folder / CHAT_TEMPLATE, template.source)
    fields = {**prompt_fields(template), ENDS: list(model.eos_ids), BASE: model.fingerprint}
    replace_text(folder / PROMPT_FILE, json_text(fields))
    write_sums(folder, (WEIGHTS_FILE, CONFIG_FILE, PROMPT_FILE))


def prompt_fields(template: Template) -> dict[str, str]:
    """Returns how a student is prompted, all arguments of its chat template included."""
    if template.name != "chat":
        return {"template": template.name, "rule_place": "", "template_args": ""}
    arguments = json.dumps(dict(template.arguments)) if template.arguments else ""
    return {"template": template.name, "rule_place": template.rule_place, "template_args": arguments}


def read_prompt_fields(folder: pathlib.Path) -> dict[str, Any]:
    """Returns how an adapter or a merged model was prompted in training; nothing where rdjax did not train it.

    Raises:
      UserError: the file is no JSON object.
    """
    fields = _read_file(folder)
    return {name: fields[name] for name in (*PROMPT_FIELDS, ENDS) if name in fields}


def _read_file(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `PROMPT_FILE`, if there is one."""
    path = folder / PROMPT_FILE
    return read_json_object(path, "") if path.exists() else {}


def adapter_notes(folder: pathlib.Path, model: LanguageModel, template: Template | None = None) -> list[str]:
    """Says what differs from the training of an adapter where it is used; nothing for one that rdjax did not train.

    Args:
      template: of the prompts; None: its own.
    """
    fields, notes = _read_file(folder), []
    if fields.get(BASE, model.fingerprint) != model.fingerprint:
        notes.append(f"{folder} was trained on other weights or with another tokenizer than {model.name} has")
    if template is None or "template" not in fields:
        return notes
    written = folder / CHAT_TEMPLATE
    source = read_text(written, "") if template.name == "chat" and written.exists() else template.source
    if any(fields.get(name) != value for name, value in prompt_fields(template).items()) or source != template.source:
        notes.append(
            f"{folder} was trained with the {fields['template']} template"
            + (f" and the arguments {fields['template_args']}" if fields.get("template_args") else "")
            + f", and is prompted otherwise here ({template.name})"
        )
    return notes
