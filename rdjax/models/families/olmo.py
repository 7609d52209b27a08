"""Reads OLMo 2 and 3: norms behind attention and MLP, and of all queries and all keys of a token.

OLMo 3 has windows in three of four layers, and scales the rotation of the others alone.
"""

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    QK_NORMS,
    Family,
    Fields,
    Pattern,
    accept_only,
    read_attention_bias,
    read_rope,
    read_sizes,
    read_windowed_layers,
)
from rdjax.models.weight_table import Row

THETA = 5e5  # of all layers where no field says otherwise


def read_olmo2(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    return read_olmo(fields, (LayerKind(read_rope(fields, where)),), "olmo2", where)


def read_olmo3(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    pattern = read_windowed_layers(fields, fields.get("rope_theta", THETA), THETA, interval=4, where=where)
    return read_olmo(fields, pattern, "olmo3", where)


def read_olmo(fields: Fields, pattern: Pattern, family: str, where: str) -> DecoderConfig:
    """Translates the fields that both read alike."""
    accept_only(fields, {"hidden_act": "silu"}, where)
    return DecoderConfig(
        **read_sizes({"rms_norm_eps": 1e-5, **fields}),
        family=family,
        pattern=pattern,
        **read_attention_bias(fields),
        norm="weight_in_float32",
        norms="after",
        qk_norm="whole",
    )


NORMS_AFTER = (
    Row("model.layers.{layer}.post_attention_layernorm.weight", ("layers.attention_out_norm.weight",)),
    Row("model.layers.{layer}.post_feedforward_layernorm.weight", ("layers.mlp_out_norm.weight",)),
)
OLMO2 = Family(read_olmo2, (*BASE_ROWS, *NORMS_AFTER, *QK_NORMS))
OLMO3 = Family(read_olmo3, OLMO2.table)
