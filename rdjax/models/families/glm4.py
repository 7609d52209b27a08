"""Reads GLM 4: rotation of neighbours in half of each head, norms on both sides, a fused MLP."""

import dataclasses

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import BASE_ROWS, FUSED_MLP, Family, Fields, accept_only, read_rope, read_sizes
from rdjax.models.weight_table import Row

DEFAULTS = {
    "head_dim": 128,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1.5625e-07,
    "max_position_embeddings": 131072,
    "partial_rotary_factor": 0.5,
}


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, {"hidden_act": "silu"}, where)
    fields = {**DEFAULTS, **fields}
    rope = dataclasses.replace(read_rope(fields, where, partial=True), interleaved=True)
    return DecoderConfig(
        **read_sizes(fields),
        family="glm4",
        pattern=(LayerKind(rope),),
        qkv_bias=fields.get("attention_bias", True),
        norms="both",
    )


NORMS = (
    Row("model.layers.{layer}.input_layernorm.weight", ("layers.attention_norm.weight",)),
    Row("model.layers.{layer}.post_self_attn_layernorm.weight", ("layers.attention_out_norm.weight",)),
    Row("model.layers.{layer}.post_attention_layernorm.weight", ("layers.mlp_norm.weight",)),
    Row("model.layers.{layer}.post_mlp_layernorm.weight", ("layers.mlp_out_norm.weight",)),
)
FAMILY = Family(read_config, (*FUSED_MLP, *BASE_ROWS, *NORMS))
