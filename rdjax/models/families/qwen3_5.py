"""Reads the text models of Qwen 3.5: gated delta nets in three of four layers, gated attention in the fourth."""

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig, DeltaNetConfig, LayerKind
from rdjax.models.families.common import (
    BASE_ROWS,
    FULL,
    NORMS_BEFORE,
    QK_NORMS,
    Family,
    Fields,
    accept_only,
    read_attention_bias,
    read_layer_types,
    read_rope,
    read_sizes,
)
from rdjax.models.weight_table import Row

LINEAR = "linear_attention"
# Published configs leave out what equals the defaults of the class in transformers.
DEFAULTS = {
    "vocab_size": 248320,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}


def read_config(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json. Of text alone, the three axes of its rotary positions are one."""
    accept_only(fields, {"hidden_act": "silu"}, where)
    fields = {**DEFAULTS, **fields}
    kinds = {FULL: LayerKind(read_rope(fields, where, partial=True)), LINEAR: LayerKind(mixer="linear_attn")}
    interval = fields["full_attention_interval"]
    default = [LINEAR if (layer + 1) % interval else FULL for layer in range(fields["num_hidden_layers"])]
    key_heads, value_heads = fields["linear_num_key_heads"], fields["linear_num_value_heads"]
    if value_heads % key_heads:
        raise UserError(f"{where}: linear_num_value_heads {value_heads} is not a multiple of {key_heads} key heads")
    return DecoderConfig(
        **read_sizes(fields),
        family="qwen3_5_text",
        pattern=read_layer_types(fields, kinds, default, where),
        **read_attention_bias(fields),
        norm="one_plus_weight",
        qk_norm="head",
        attention_gate=True,
        delta_net=DeltaNetConfig(
            key_heads,
            value_heads,
            fields["linear_key_head_dim"],
            fields["linear_value_head_dim"],
            fields["linear_conv_kernel_dim"],
        ),
    )


DELTA_NET = (
    Row("model.layers.{layer}.linear_attn.conv1d.weight", ("layers.linear_attn.conv_taps",)),
    Row("model.layers.{layer}.linear_attn.dt_bias", ("layers.linear_attn.dt_bias",)),
    Row("model.layers.{layer}.linear_attn.A_log", ("layers.linear_attn.a_log",)),
    Row("model.layers.{layer}.linear_attn.norm.weight", ("layers.linear_attn.norm.weight",)),
)
# Heads that predict several tokens at once, which transformers leaves out too; and the part that sees.
OTHER_PARTS = (r"mtp\..*", r"model\.visual\..*")
FAMILY = Family(read_config, (*BASE_ROWS, *NORMS_BEFORE, *QK_NORMS, *DELTA_NET), OTHER_PARTS[:1])
