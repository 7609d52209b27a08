"""The shape of a decoder, read from a Hugging Face `config.json`."""

import dataclasses
import json
import pathlib
from typing import Any

from rdjax.errors import UserError

SUPPORTED_MODEL_TYPES = ("llama",)


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; the scaling fields are those of Hugging Face's `rope_scaling`.

    Attributes:
      theta: base of the geometric series of wavelengths.
      kind: "default", "linear" or "llama3".
      factor: how much longer than trained the context is ("linear", "llama3").
      low_freq_factor, high_freq_factor, original_context: the band between scaled and kept
        frequencies ("llama3").
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder (shape letters in `rdjax/__init__.py`)."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    norm_epsilon: float
    max_positions: int
    tied_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: RopeConfig = RopeConfig()


def read_decoder_config(folder: pathlib.Path) -> DecoderConfig:
    """Reads `config.json` of a model folder.

    Raises:
      UserError: the file is missing or no JSON, the model type is not supported, or a field asks
        for a computation that the decoder does not do.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; a model folder holds config.json and *.safetensors") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: must hold a JSON object, as a Hugging Face config does")
    return decoder_config_from_hf(fields, where=str(path))


def decoder_config_from_hf(fields: dict[str, Any], where: str) -> DecoderConfig:
    """Translates the fields of a Hugging Face config; `where` names its source in errors."""
    model_type = fields.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UserError(
            f"{where}: model_type {model_type!r} is not supported; accepted: {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    # Fields that would change the result, with the only value that the decoder computes.
    required = {"hidden_act": "silu", "sliding_window": None, "quantization_config": None, "partial_rotary_factor": 1.0}
    for name, accepted in required.items():
        if fields.get(name, accepted) != accepted:
            raise UserError(f"{where}: {name} = {fields[name]!r} is not supported; accepted: {accepted!r}")
    try:
        width, heads = fields["hidden_size"], fields["num_attention_heads"]
        config = DecoderConfig(
            vocab=fields["vocab_size"],
            width=width,
            layers=fields["num_hidden_layers"],
            heads=heads,
            kv_heads=fields.get("num_key_value_heads") or heads,
            head_width=fields.get("head_dim") or width // heads,
            feed_forward=fields["intermediate_size"],
            norm_epsilon=fields.get("rms_norm_eps", 1e-6),
            max_positions=fields.get("max_position_embeddings", 2048),
            tied_embeddings=fields.get("tie_word_embeddings", False),
            attention_bias=fields.get("attention_bias", False),
            mlp_bias=fields.get("mlp_bias", False),
            rope=_rope_config(fields, where),
        )
        uneven = config.heads % config.kv_heads
    except KeyError as error:
        raise UserError(f"{where}: the field {error.args[0]} is missing") from None
    except TypeError as error:
        raise UserError(f"{where}: a field has the wrong type ({error})") from None
    if uneven:
        counts = f"num_attention_heads {heads} is not a multiple of num_key_value_heads {config.kv_heads}"
        raise UserError(f"{where}: {counts}")
    return config


def _rope_config(fields: dict[str, Any], where: str) -> RopeConfig:
    # transformers 5 writes `rope_parameters`; earlier versions `rope_theta` and `rope_scaling`.
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = scaling.get("rope_theta", fields.get("rope_theta", 10000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, kind=kind, factor=scaling["factor"])
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            kind=kind,
            factor=scaling["factor"],
            low_freq_factor=scaling["low_freq_factor"],
            high_freq_factor=scaling["high_freq_factor"],
            original_context=scaling["original_max_position_embeddings"],
        )
    raise UserError(f"{where}: rope type {kind!r} is not supported; accepted: default, linear, llama3")
