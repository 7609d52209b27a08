"""Makes the adapter that a run starts from: one that changes nothing, or one that a folder holds."""

import dataclasses

from ml_collections import config_dict

from rdjax.errors import UserError
from rdjax.models.load import LanguageModel, resolve_folder
from rdjax.models.lora import Adapter, LoraSpec, count_adapted_layers, init_adapter, lora_spec
from rdjax.models.peft_files import load_adapter
from rdjax.parallel.mesh import put, replicated
from rdjax.run.adapter_folder import adapter_notes


def starting_adapter(config: config_dict.ConfigDict, model: LanguageModel) -> tuple[LoraSpec, Adapter]:
    """Returns the adapter that teacher and student start from: an existing one, or one that changes nothing.

    Raises:
      UserError: the existing one has another form than the config says.
    """
    spec = lora_spec(config.lora, model.config)
    if (adapted := count_adapted_layers(model.config, spec)) < model.config.layers:
        print(
            f"note: config.lora.targets are in {adapted} of {model.config.layers} layers; the others stay as they are"
        )
    if not config.model.adapter:
        return spec, put(init_adapter(model.config, spec, config.seed), replicated(model.mesh))
    adapter, found = load_like(config, "adapter", spec, model)
    return dataclasses.replace(found, dropout=spec.dropout), adapter


def load_like(
    config: config_dict.ConfigDict, field: str, spec: LoraSpec, model: LanguageModel
) -> tuple[Adapter, LoraSpec]:
    """Loads the adapter that a field of `config.model` names, which must have the form of the run's adapters.

    Raises:
      UserError: it has another.
    """
    path = config.model[field]
    folder = resolve_folder(path, "adapter")
    for note in adapter_notes(folder, model):
        print(f"note: {note}")
    adapter, found = load_adapter(folder, model.config, model.base)
    for name in ("rank", "alpha"):
        if getattr(spec, name) != getattr(found, name):
            raise UserError(
                f"config.lora.{name} = {getattr(spec, name)} but the adapter {path} that the run "
                f"starts from has {getattr(found, name)}; accepted: the adapter's"
            )
    if set(spec.targets) != set(found.targets):
        raise UserError(f"config.lora.targets = {spec.targets} but the adapter {path} has {found.targets}")
    return put(adapter, replicated(model.mesh)), found
