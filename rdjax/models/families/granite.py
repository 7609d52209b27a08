"""Reads Granite 3: Llama with multipliers of embeddings, scores, residual branches and logits."""

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


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, {"hidden_act": "silu"}, where)
    return DecoderConfig(
        **read_sizes(fields),
        family="granite",
        pattern=(LayerKind(read_rope(fields, where)),),
        **read_attention_bias(fields),
        mlp_bias=fields.get("mlp_bias", False),
        score_scale=fields.get("attention_multiplier", 1.0),
        embedding_scale=fields.get("embedding_multiplier", 1.0),
        residual_scale=fields.get("residual_multiplier", 1.0),
        logit_scale=1 / fields.get("logits_scaling", 1.0),
    )


FAMILY = Family(read_config, (*BASE_ROWS, *NORMS_BEFORE))
