"""Reads Mistral 7B (Llama with a window on all layers) and Ministral 3 (queries that grow with their position)."""

import dataclasses

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

# The config of a text model inside another one leaves out what equals the defaults of its class, sizes too.
SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
DEFAULTS = SIZES | {"vocab_size": 32000, "num_hidden_layers": 32, "max_position_embeddings": 131072}
# transformers' Mistral ignores layer types, which Ministral has.
ACCEPTED = {"hidden_act": "silu", "layer_types": None}


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, ACCEPTED, where)
    fields = {**DEFAULTS, **fields}
    kind = LayerKind(read_rope(fields, where), fields.get("sliding_window", 4096))
    return DecoderConfig(**read_sizes(fields), family="mistral", pattern=(kind,))


MINISTRAL3_DEFAULTS = SIZES | {
    "vocab_size": 131072,
    "num_hidden_layers": 34,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}


def read_ministral3(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, ACCEPTED, where)
    fields = {**MINISTRAL3_DEFAULTS, **fields}
    scaling = fields.get("rope_scaling") or fields["rope_parameters"]
    rope = dataclasses.replace(
        read_rope(fields, where),
        query_growth=scaling["llama_4_scaling_beta"],
        query_period=scaling["original_max_position_embeddings"],
    )
    kind = LayerKind(rope, fields.get("sliding_window"))
    return DecoderConfig(**read_sizes(fields), family="ministral3", pattern=(kind,))


FAMILY = Family(read_config, (*BASE_ROWS, *NORMS_BEFORE))
MINISTRAL3 = Family(read_ministral3, FAMILY.table)
