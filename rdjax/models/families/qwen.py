"""Reads Qwen 2 and 2.5 (biases on queries, keys and values) and Qwen 3 (norms of their heads)."""

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    NORMS_BEFORE,
    QK_NORMS,
    Family,
    Fields,
    Pattern,
    accept_only,
    read_attention_bias,
    read_layer_types,
    read_rope,
    read_sizes,
)

DEFAULTS = {"num_key_value_heads": 32, "max_position_embeddings": 32768}
ACCEPTED = {"hidden_act": "silu"}


def read_qwen2(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, ACCEPTED, where)
    fields = {**DEFAULTS, **fields}
    return DecoderConfig(
        **read_sizes(fields),
        family="qwen2",
        pattern=read_pattern(fields, where),
        qkv_bias=True,
    )


def read_qwen3(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, ACCEPTED, where)
    fields = {**DEFAULTS, "head_dim": 128, **fields}
    return DecoderConfig(
        **read_sizes(fields),
        family="qwen3",
        pattern=read_pattern(fields, where),
        **read_attention_bias(fields),
        qk_norm="head",
    )


def read_pattern(fields: Fields, where: str) -> Pattern:
    """Returns the kinds of the layers: `sliding_window` counts only where `use_sliding_window` is set."""
    rope, layers = read_rope(fields, where), fields["num_hidden_layers"]
    window = fields.get("sliding_window", 4096) if fields.get("use_sliding_window", False) else None
    kinds = {"full_attention": LayerKind(rope), "sliding_attention": LayerKind(rope, window)}
    full = layers if window is None else min(fields.get("max_window_layers", 28), layers)
    default = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    return read_layer_types(fields, kinds, default, where)


QWEN2 = Family(read_qwen2, (*BASE_ROWS, *NORMS_BEFORE))
QWEN3 = Family(read_qwen3, (*BASE_ROWS, *NORMS_BEFORE, *QK_NORMS))
