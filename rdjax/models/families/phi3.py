"""Reads Phi 3 and Phi 4: Llama with fused projections, partial rotation, and LongRoPE."""

from rdjax.models.config import DecoderConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    FUSED_MLP,
    NORMS_BEFORE,
    Family,
    Fields,
    accept_only,
    read_rope,
    read_sizes,
)
from rdjax.models.weight_table import Row

DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096}


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    accept_only(fields, {"hidden_act": "silu"}, where)
    fields = {**DEFAULTS, **fields}
    rope = read_rope(with_longrope(fields), where, partial=True)
    sizes = read_sizes(fields)
    if rope.long_frequencies is not None:
        sizes |= {"max_positions": fields["original_max_position_embeddings"], "long_positions": sizes["max_positions"]}
    return DecoderConfig(**sizes, family="phi3", pattern=(LayerKind(rope, fields.get("sliding_window")),))


def with_longrope(fields: Fields) -> Fields:
    """Returns the fields with LongRoPE by its present name, and the original context where other families have it."""
    spelling = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    scaling = dict(fields.get(spelling) or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    scaling["rope_type"] = "longrope" if kind in ("su", "yarn") else kind
    scaling["original_max_position_embeddings"] = fields["original_max_position_embeddings"]
    return fields | {spelling: scaling}


FUSED_QKV = (
    Row(
        "model.layers.{layer}.self_attn.qkv_proj.weight",
        tuple(f"layers.self_attn.{name}_proj.kernel" for name in "qkv"),
        "transpose",
    ),
)
FAMILY = Family(read_config, (*FUSED_QKV, *FUSED_MLP, *BASE_ROWS, *NORMS_BEFORE))
