"""Reads Llama 1, 2 and 3, and the many models that save themselves as `llama`."""

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    NORMS_BEFORE,
    Family,
    Fields,
    accept_only,
    read_attention_bias,
    read_rope,
    read_sizes,
)

ACCEPTED = {"hidden_act": "silu", "sliding_window": None}


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, ACCEPTED, where)
    return DecoderConfig(
        **read_sizes(fields),
        family="llama",
        pattern=(LayerKind(read_rope(fields, where)),),
        **read_attention_bias(fields),
        mlp_bias=fields.get("mlp_bias", False),
    )


FAMILY = Family(read_config, (*BASE_ROWS, *NORMS_BEFORE), (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",))
