"""Reads Granite 3 and dense Granite 4: Llama with multipliers of embeddings, scores, residual branches and logits."""

from typing import Any

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    NORMS_BEFORE,
    Family,
    Fields,
    accept_only,
    read_attention_bias,
    read_layer_types,
    read_rope,
    read_sizes,
)
from rdjax.models.weight_table import Row


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    kind = LayerKind(read_rope(fields, where))
    return read_granite(fields, kind, where, family="granite", mlp_bias=fields.get("mlp_bias", False))


def read_granite4(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json; its MLP is what a mixture of experts would share."""
    accept_only({"num_local_experts": 8, **fields}, {"num_local_experts": 0}, where)
    rope = read_rope(fields, where) if fields.get("position_embedding_type") == "rope" else None
    kinds = dict.fromkeys(("attention", "full_attention"), LayerKind(rope))
    types = fields.get("layer_types") or fields.get("layers_block_type") or ["mamba"]
    (kind,) = set(read_layer_types(fields | {"layer_types": types}, kinds, types, where))
    sizes = {**fields, "intermediate_size": fields.get("shared_intermediate_size", 1024)}
    return read_granite(sizes, kind, where, family="granitemoehybrid")


def read_granite(fields: Fields, kind: LayerKind, where: str, **others: Any) -> DecoderConfig:
    """Translates the fields that both read alike."""
    accept_only(fields, {"hidden_act": "silu"}, where)
    return DecoderConfig(
        **read_sizes(fields),
        **others,
        pattern=(kind,),
        **read_attention_bias(fields),
        score_scale=fields.get("attention_multiplier", 1.0),
        embedding_scale=fields.get("embedding_multiplier", 1.0),
        residual_scale=fields.get("residual_multiplier", 1.0),
        logit_scale=1 / fields.get("logits_scaling", 1.0),
    )


SHARED_MLP = (
    Row(
        "model.layers.{layer}.shared_mlp.input_linear.weight",
        ("layers.mlp.gate_proj.kernel", "layers.mlp.up_proj.kernel"),
        "transpose",
    ),
    Row("model.layers.{layer}.shared_mlp.output_linear.weight", ("layers.mlp.down_proj.kernel",), "transpose"),
)
FAMILY = Family(read_config, (*BASE_ROWS, *NORMS_BEFORE))
GRANITE4 = Family(read_granite4, (*SHARED_MLP, *BASE_ROWS, *NORMS_BEFORE))
