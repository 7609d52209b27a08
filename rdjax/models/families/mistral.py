"""Reads Mistral 7B: Llama with a window on all layers."""

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    NORMS_BEFORE,
    Family,
    Fields,
    accept_only,
    read_rope,
    read_sizes,
)

DEFAULTS = {"num_key_value_heads": 8, "max_position_embeddings": 131072}
# transformers' Mistral ignores layer types, which Ministral has.
ACCEPTED = {"hidden_act": "silu", "layer_types": None}


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, ACCEPTED, where)
    kind = LayerKind(read_rope(fields, where), fields.get("sliding_window", 4096))
    return DecoderConfig(**read_sizes({**DEFAULTS, **fields}), family="mistral", pattern=(kind,))


FAMILY = Family(read_config, (*BASE_ROWS, *NORMS_BEFORE))
