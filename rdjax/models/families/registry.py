"""Lists the model families, and reads `config.json` by them."""

import pathlib

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.families import gemma, gemma4, glm4, granite, llama, mistral, olmo, phi3, qwen, qwen3_5, smollm3
from rdjax.models.families.common import Family, Fields, accept_only, check_sizes
from rdjax.models.families.wrapped import wrap
from rdjax.models.fp8 import read_block
from rdjax.storage.files import read_json_object

# By the `model_type` of config.json.
FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "qwen3_5_text": qwen3_5.FAMILY,
    "qwen3_5": wrap("qwen3_5", {"qwen3_5_text": qwen3_5.FAMILY}, qwen3_5.OTHER_PARTS, tied=False),
    "mistral": mistral.FAMILY,
    "ministral3": mistral.MINISTRAL3,
    "mistral3": wrap("mistral3", {"mistral": mistral.FAMILY, "ministral3": mistral.MINISTRAL3}),
    "smollm3": smollm3.FAMILY,
    "granite": granite.FAMILY,
    "granitemoehybrid": granite.GRANITE4,
    "olmo2": olmo.OLMO2,
    "olmo3": olmo.OLMO3,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
    "gemma3": wrap("gemma3", {"gemma3_text": gemma.GEMMA3}, accepted={"final_logit_softcapping": None}),
    "gemma4_text": gemma4.TEXT,
    "gemma4": wrap("gemma4", {"gemma4_text": gemma4.TEXT}, gemma4.OTHER_PARTS),
    "gemma4_unified_text": gemma4.UNIFIED_TEXT,
    "gemma4_unified": wrap("gemma4_unified", {"gemma4_unified_text": gemma4.UNIFIED_TEXT}, gemma4.OTHER_PARTS),
    "phi3": phi3.FAMILY,
    "glm4": glm4.FAMILY,
}


def read_decoder_config(folder: pathlib.Path) -> DecoderConfig:
    """Reads the decoder's config from `config.json` of a model folder.

    Raises:
      UserError: the file is missing or no JSON, the model type is not supported, or a field asks
        for a computation that the decoder does not have.
    """
    return decoder_config_from_hf(read_fields(folder), where=str(folder / "config.json"))


def read_fields(folder: pathlib.Path) -> Fields:
    """Reads the fields of `config.json` of a model folder.

    Raises:
      UserError: the file is missing or no JSON object.
    """
    path = folder / "config.json"
    return read_json_object(path, f"{path}: not found; a model folder holds config.json and *.safetensors")


def decoder_config_from_hf(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of a Hugging Face config; `where` names its source in errors.

    Raises:
      UserError: as `read_decoder_config`.
    """
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{where}: model_type {model_type!r} is not supported; accepted: {', '.join(FAMILIES)}")
    parts = {where: fields}
    if isinstance(fields.get("text_config"), dict):
        parts[f"{where}: text_config"] = fields["text_config"]
    for place, part in parts.items():
        check_sizes(part, place)
        accept_only(part, {"is_causal": True}, place)
    read_block(fields, where)
    try:
        config = FAMILIES[model_type].read_config(fields, where)
        sizes = [config.attention_sizes(mixer) for mixer in config.mixers if mixer != "linear_attn"]
        uneven = [own.kv_heads for own in sizes if config.heads % own.kv_heads]
    except KeyError as error:
        raise UserError(f"{where}: the field {error.args[0]} is missing") from None
    except (TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}: a field has the wrong type or value ({error})") from None
    if any(kind.window == 0 for kind in config.kinds):
        raise UserError(f"{where}: sliding_window = 0; accepted: null, or 1 token and more")
    if config.long_positions is None and any(kind.rope and kind.rope.long_frequencies for kind in config.kinds):
        raise UserError(f"{where}: rope type 'longrope' is not supported for model_type {model_type!r}")
    if uneven:
        field = "num_key_value_heads" if uneven[0] == config.kv_heads else "num_global_key_value_heads"
        counts = f"num_attention_heads {config.heads} is not a multiple of {field} {uneven[0]}"
        raise UserError(f"{where}: {counts}")
    return config
