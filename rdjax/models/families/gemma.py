"""Reads Gemma 2 and the text models of Gemma 3: norms on both sides, 1 + weight, windows in most layers."""

from typing import Any

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    FULL,
    QK_NORMS,
    SLIDING,
    Family,
    Fields,
    accept_only,
    read_attention_bias,
    read_layer_types,
    read_rope,
    read_sizes,
    read_windowed_layers,
)
from rdjax.models.weight_table import Row

ACCEPTED = {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": None}
DEFAULTS = {"tie_word_embeddings": True, "head_dim": 256, "num_key_value_heads": 4}
# Published configs of the text model inside Gemma 3 leave out what equals the defaults of its class, sizes too.
GEMMA3_DEFAULTS = DEFAULTS | {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131072,
}


def read_gemma2(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, ACCEPTED, where)
    fields = {**DEFAULTS, "max_position_embeddings": 8192, **fields}
    rope, layers = read_rope(fields, where), fields["num_hidden_layers"]
    kinds = {FULL: LayerKind(rope), SLIDING: LayerKind(rope, fields.get("sliding_window", 4096))}
    default = [FULL if layer % 2 else SLIDING for layer in range(layers)]
    return DecoderConfig(
        **read_common(fields),
        family="gemma2",
        pattern=read_layer_types(fields, kinds, default, where),
        score_softcap=fields.get("attn_logit_softcapping", 50.0),
        logit_softcap=fields.get("final_logit_softcapping", 30.0),
    )


def read_gemma3(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    fields = fields | {"use_bidirectional_attention": fields.get("use_bidirectional_attention") or None}
    accept_only(fields, ACCEPTED | {"attn_logit_softcapping": None}, where)
    fields = {**GEMMA3_DEFAULTS, **fields}
    thetas = fields.get("rope_theta", 1e6), fields.get("rope_local_base_freq", 1e4)
    interval = fields.get("sliding_window_pattern", 6)
    return DecoderConfig(
        **read_common(fields),
        family="gemma3_text",
        pattern=read_windowed_layers(fields, *thetas, interval, where),
        qk_norm="head",
        logit_softcap=fields.get("final_logit_softcapping"),
    )


def read_common(fields: Fields) -> dict[str, Any]:
    """Returns the fields of a `DecoderConfig` that both read alike."""
    sizes = read_sizes(fields)
    return {
        **sizes,
        **read_attention_bias(fields),
        "activation": "gelu_tanh",
        "norm": "one_plus_weight",
        "norms": "both",
        "score_scale": fields.get("query_pre_attn_scalar", 256) ** -0.5,
        "embedding_scale": sizes["width"] ** 0.5,
    }


NORMS = (
    Row("model.layers.{layer}.input_layernorm.weight", ("layers.attention_norm.weight",)),
    Row("model.layers.{layer}.post_attention_layernorm.weight", ("layers.attention_out_norm.weight",)),
    Row("model.layers.{layer}.pre_feedforward_layernorm.weight", ("layers.mlp_norm.weight",)),
    Row("model.layers.{layer}.post_feedforward_layernorm.weight", ("layers.mlp_out_norm.weight",)),
)
GEMMA2 = Family(read_gemma2, (*BASE_ROWS, *NORMS))
GEMMA3 = Family(read_gemma3, (*BASE_ROWS, *NORMS, *QK_NORMS))
