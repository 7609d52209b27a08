"""Reads and checks `adapter_config.json` of PEFT: what the decoder has no computation for is refused by name."""

import json
import math
import pathlib
import re
from typing import Annotated, Any

import msgspec

from rdjax.errors import UserError
from rdjax.storage.files import read_json_object
from rdjax.storage.records import of_form

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Fields of adapter_config.json that may have any value: they describe how the adapter was trained, or say what its
# tensors say too.
HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "unsloth_fixed",
    "use_rslora",
}
# And those that must have one of some values. All others must be unset.
ACCEPTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # The others change the base, too, when PEFT loads the adapter (pissa, olora, loftq, corda, lora_ga).
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
UNSET = (None, False, [], {}, "")

Rank = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
Alpha = Annotated[float, msgspec.Meta(gt=0)]


class LoraFields(msgspec.Struct):
    """Describes the fields of adapter_config.json that the adapter's numbers follow from."""

    r: Rank
    lora_alpha: Alpha
    lora_dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    use_rslora: bool | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    target_modules: list[str] | str | None = None


def read_fields(path: pathlib.Path) -> dict[str, Any]:
    """Reads `adapter_config.json`.

    Raises:
      UserError: it is missing or invalid, or has a field for which the decoder has no computation.
    """
    fields = read_json_object(path, missing_file(path))
    for name, value in fields.items():
        accepted = ACCEPTED.get(name, UNSET)
        if name not in HARMLESS and value not in accepted:
            raise UserError(f"{path}: {name} = {value!r} is not supported; accepted: {_spelled(accepted)}")
    of_form(fields, LoraFields, str(path), advice="as PEFT writes it")
    for name in ("rank_pattern", "alpha_pattern"):
        for key in fields.get(name) or {}:
            try:
                re.compile(key)
            except re.error as error:
                raise UserError(f"{path}: {name} has {key[:80]!r}, which is no pattern ({error})") from None
    return fields


def own_scale(module: str, rank: int, fields: dict[str, Any]) -> float:
    """Returns the scale of one module: alpha over its rank, or over the root of its rank.

    Args:
      module: its name in the model class of transformers, which the keys of `alpha_pattern` match.
    """
    alpha = next(
        (alpha for key, alpha in (fields.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({key})$", module)),
        fields["lora_alpha"],
    )
    return alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)


def missing_file(path: pathlib.Path) -> str:
    """Returns an error message for a missing file of an adapter."""
    return f"{path}: not found; an adapter folder holds {CONFIG_FILE} and {WEIGHTS_FILE}"


def _spelled(accepted: tuple) -> str:
    """Returns accepted values as JSON spells them."""
    return "null" if accepted is UNSET else ", ".join(json.dumps(value) for value in accepted)
