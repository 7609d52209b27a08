"""Reads OLMo 2: norms behind attention and MLP, and of all queries and all keys of a token."""

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    QK_NORMS,
    Family,
    Fields,
    accept_only,
    read_attention_bias,
    read_rope,
    read_sizes,
)
from rdjax.models.weight_table import Row


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, {"hidden_act": "silu"}, where)
    return DecoderConfig(
        **read_sizes({"rms_norm_eps": 1e-5, **fields}),
        family="olmo2",
        pattern=(LayerKind(read_rope(fields, where)),),
        **read_attention_bias(fields),
        norm="weight_in_float32",
        norms="after",
        qk_norm="whole",
    )


NORMS_AFTER = (
    Row("model.layers.{layer}.post_attention_layernorm.weight", ("layers.attention_out_norm.weight",)),
    Row("model.layers.{layer}.post_feedforward_layernorm.weight", ("layers.mlp_out_norm.weight",)),
)
OLMO2 = Family(read_config, (*BASE_ROWS, *NORMS_AFTER, *QK_NORMS))
