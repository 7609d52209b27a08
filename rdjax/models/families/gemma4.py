"""Reads the text models of Gemma 4: wider heads in layers without a window, keys and values that the last layers share,
values that can be keys, and embeddings that each layer adds."""

import dataclasses
from collections.abc import Sequence

from rdjax.errors import UserError
from rdjax.models.config import SHARING, AttentionSizes, DecoderConfig, LayerEmbeddings, LayerKind
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
    read_sizes,
    scaled_rope,
)
from rdjax.models.families.gemma import NORMS
from rdjax.models.weight_table import Row

# Published configs leave out what equals the defaults of the class in transformers.
DEFAULTS = {
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "sliding_window": 512,
    "num_kv_shared_layers": 0,
    "attention_k_eq_v": False,
}
UNIFIED_DEFAULTS = {"max_position_embeddings": 262144, "sliding_window": 1024}
INTERVAL = 6  # of layers without a window, where `layer_types` is missing
ROPES = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
MIXER = {FULL: "global_attn", SLIDING: "self_attn"}  # of each type of layer
SHARED = {mixer: sharing for sharing, mixer in SHARING.items()}


def read_text(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json."""
    fields = {**DEFAULTS, "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256, **fields}
    config, width = read_common(fields, where), fields["hidden_size_per_layer_input"]
    embeddings = LayerEmbeddings(fields["vocab_size_per_layer_input"], width) if width else None
    return dataclasses.replace(config, family="gemma4_text", layer_embeddings=embeddings)


def read_unified_text(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields of config.json of models that have no embeddings of each layer."""
    config = read_common({**DEFAULTS, **UNIFIED_DEFAULTS, **fields}, where)
    return dataclasses.replace(config, family="gemma4_unified_text")


def read_common(fields: Fields, where: str) -> DecoderConfig:
    """Translates the fields that both have; none of those with defaults is missing."""
    # "vision" lets tokens of images attend to later ones; of text alone it changes nothing.
    if fields.get("use_bidirectional_attention") == "vision":
        fields = fields | {"use_bidirectional_attention": None}
    accepted = {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": None}
    accept_only(fields, accepted | {"enable_moe_block": False}, where)
    sizes, types = read_sizes(fields), read_types(fields)
    global_attention = read_global_attention(fields, types, where)
    return DecoderConfig(
        **sizes,
        **read_attention_bias(fields),
        pattern=read_pattern(fields, types, global_attention, where),
        activation="gelu_tanh",
        norm="weight_in_float32",
        norms="both",
        qk_norm="head",
        value_norm=True,
        score_scale=1.0,
        logit_softcap=fields.get("final_logit_softcapping"),
        embedding_scale=sizes["width"] ** 0.5,
        global_attention=global_attention,
        shared_feed_forward=sizes["feed_forward"] * (2 if fields.get("use_double_wide_mlp") else 1),
        layer_scale=True,
    )


def read_global_attention(fields: Fields, types: Sequence[str], where: str) -> AttentionSizes:
    """Returns the sizes of attention in layers without a window.

    Published configs have a field for each size; transformers writes all layers that differ, by number.

    Raises:
      UserError: these are other layers, or differ from one another.
    """
    keys_as_values, kv_heads = bool(fields["attention_k_eq_v"]), fields["num_key_value_heads"]
    written = fields.get("per_layer_config")
    if written is None:
        own = fields.get("num_global_key_value_heads") if keys_as_values else None
        return AttentionSizes(own or kv_heads, fields["global_head_dim"], keys_as_values)
    written = {int(layer): sizes for layer, sizes in written.items()}  # "05" of thirty layers
    full = [layer for layer, name in enumerate(types) if name == FULL]
    if sorted(written) != sorted(full) or any(written[layer] != written[full[0]] for layer in full):
        raise UserError(f"{where}: per_layer_config; accepted: equal sizes for exactly the layers without a window")
    sizes = {"num_key_value_heads": kv_heads, "head_dim": fields["head_dim"], **written[full[0]]}
    if unknown := sorted(sizes.keys() - {"num_key_value_heads", "head_dim"}):
        raise UserError(f"{where}: per_layer_config has {unknown[0]}; accepted: num_key_value_heads, head_dim")
    return AttentionSizes(sizes["num_key_value_heads"], sizes["head_dim"], keys_as_values)


def read_types(fields: Fields) -> list[str]:
    """Returns the types of all layers; the last has no window, whatever is written, as in transformers."""
    layers = fields["num_hidden_layers"]
    default = [SLIDING if (layer + 1) % INTERVAL else FULL for layer in range(layers)]
    return [*(fields.get("layer_types") or default)[:-1], FULL]


def read_pattern(
    fields: Fields, types: Sequence[str], global_attention: AttentionSizes, where: str
) -> tuple[LayerKind, ...]:
    """Returns the kinds of the layers.

    Raises:
      UserError: a type of layer shares keys and values, and no earlier layer of this type has any.
    """
    shared = fields["num_kv_shared_layers"]
    widths = {FULL: global_attention.head_width, SLIDING: fields["head_dim"]}
    written = fields.get("rope_parameters") or ROPES
    ropes = {
        name: scaled_rope(
            written[name],
            fields | {"head_dim": widths[name]},
            where,
            partial=written[name].get("rope_type") == "proportional",  # others rotate whole heads
        )
        for name in MIXER
    }
    windows = {FULL: None, SLIDING: fields["sliding_window"]}
    kinds = {name: LayerKind(ropes[name], windows[name], mixer) for name, mixer in MIXER.items()}
    own = read_layer_types({**fields, "layer_types": types}, kinds, types, where)
    first = max(len(types) - shared, 0)
    missing = sorted(set(types[first:]) - set(types[:first]))
    if missing:
        raise UserError(
            f"{where}: num_kv_shared_layers = {shared}: no earlier layer has keys and values for {missing[0]} layers"
        )
    return (*own[:first], *(dataclasses.replace(kind, mixer=SHARED[kind.mixer]) for kind in own[first:]))


BLOCK = (
    *NORMS,
    *QK_NORMS,
    # The attentions are one to transformers, and so are the MLPs.
    *(
        Row(f"model.layers.{{layer}}.{name}.{{projection}}.{kind}", (f"layers.{part}.{{projection}}.{own}",), transform)
        for part, name in {
            "global_attn": "self_attn",
            "shared_self_attn": "self_attn",
            "shared_global_attn": "self_attn",
            "shared_mlp": "mlp",
        }.items()
        for kind, own, transform in (
            ("weight", "kernel", "transpose"),
            ("weight", "weight", "same"),  # of norms
            ("bias", "bias", "same"),
        )
    ),
    Row("model.layers.{layer}.layer_scalar", ("layers.scale",)),
)
EMBEDDINGS = (
    Row("model.embed_tokens_per_layer.weight", ("layer_embeddings.table",)),
    Row("model.per_layer_model_projection.weight", ("layer_embeddings.projection.kernel",), "transpose"),
    Row("model.per_layer_projection_norm.weight", ("layer_embeddings.norm.weight",)),
    Row("model.layers.{layer}.per_layer_input_gate.weight", ("layers.layer_embedding.gate.kernel",), "transpose"),
    Row("model.layers.{layer}.per_layer_projection.weight", ("layers.layer_embedding.projection.kernel",), "transpose"),
    Row("model.layers.{layer}.post_per_layer_input_norm.weight", ("layers.layer_embedding.norm.weight",)),
)
# Layers that share have keys and values in the files, which nothing reads.
UNREAD = (r"model\.layers\.({sharing})\.self_attn\.[kv]_(proj|norm)\.(weight|bias)",)
OTHER_PARTS = (
    *UNREAD,
    r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder)\..*",
)
TEXT = Family(read_text, (*BLOCK, *EMBEDDINGS, *BASE_ROWS), UNREAD)
UNIFIED_TEXT = Family(read_unified_text, (*BLOCK, *BASE_ROWS), UNREAD)
