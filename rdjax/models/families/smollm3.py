"""Reads SmolLM 3: Llama without rotary positions in every fourth layer."""

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    FULL,
    NORMS_BEFORE,
    Family,
    Fields,
    accept_only,
    read_attention_bias,
    read_layer_types,
    read_rope,
    read_sizes,
)

DEFAULTS = {"tie_word_embeddings": True, "num_key_value_heads": 4, "max_position_embeddings": 32768}
ACCEPTED = {"hidden_act": "silu", "use_sliding_window": False}


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, ACCEPTED, where)
    fields = {**DEFAULTS, **fields}
    interval = fields.get("no_rope_layer_interval", 4)
    rotated, plain = LayerKind(read_rope(fields, where, default_theta=2e6)), LayerKind(None)
    layers = fields["num_hidden_layers"]
    has_rope = fields.get("no_rope_layers") or [(layer + 1) % interval for layer in range(layers)]
    if len(has_rope) < layers:
        raise UserError(f"{where}: no_rope_layers has {len(has_rope)} entries for {layers} layers")
    read_layer_types(fields, {FULL: rotated}, [FULL] * layers, where)  # transformers obeys them, window or not
    return DecoderConfig(
        **read_sizes(fields),
        family="smollm3",
        pattern=tuple(rotated if has_rope[layer] else plain for layer in range(layers)),
        **read_attention_bias(fields),
        mlp_bias=fields.get("mlp_bias", False),
    )


FAMILY = Family(read_config, (*BASE_ROWS, *NORMS_BEFORE))
