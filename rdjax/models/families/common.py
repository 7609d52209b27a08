"""Provides what the model families share: how fields of config.json are read, and the usual names of tensors."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig, LayerKind, RopeConfig
from rdjax.models.rotary import SCALINGS, make_rope
from rdjax.models.weight_table import Row
from rdjax.storage.records import of_form

Fields = dict[str, Any]
Pattern = tuple[LayerKind, ...]

FULL, SLIDING = "full_attention", "sliding_attention"  # types of layers


class Family(NamedTuple):
    """Describes how the files of a model type are read.

    Attributes:
      read_config: (fields of config.json, source for errors) -> the decoder's config. A missing field may raise
        KeyError, a wrong type TypeError.
      table: tensor names; the first row that holds a parameter counts.
      ignored: patterns of tensors that follow from the config, or that belong to no decoder of text; `{sharing}` stands
        for the numbers of layers that share keys and values.
      prefixes: (of names in the files, of names in the table), where a model of several parts wraps the decoder.
      module_prefix: what "model." of the table is called in the model class of transformers.
      auto_class: of transformers, which loads a model that has these modules.
    """

    read_config: Callable[[Fields, str], DecoderConfig]
    table: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()
    module_prefix: str = "model."
    auto_class: str = "AutoModelForCausalLM"


BASE_ROWS = (
    Row("model.embed_tokens.weight", ("embed_tokens",)),
    Row("model.norm.weight", ("norm.weight",)),
    Row("lm_head.weight", ("lm_head.kernel",), "transpose"),
    Row("model.layers.{layer}.{projection}.weight", ("layers.{projection}.kernel",), "transpose"),
    Row("model.layers.{layer}.{projection}.bias", ("layers.{projection}.bias",)),
)

NORMS_BEFORE = (
    Row("model.layers.{layer}.input_layernorm.weight", ("layers.attention_norm.weight",)),
    Row("model.layers.{layer}.post_attention_layernorm.weight", ("layers.mlp_norm.weight",)),
)

FUSED_MLP = (
    Row(
        "model.layers.{layer}.mlp.gate_up_proj.weight",
        ("layers.mlp.gate_proj.kernel", "layers.mlp.up_proj.kernel"),
        "transpose",
    ),
)

QK_NORMS = (
    Row("model.layers.{layer}.self_attn.q_norm.weight", ("layers.self_attn.q_norm.weight",)),
    Row("model.layers.{layer}.self_attn.k_norm.weight", ("layers.self_attn.k_norm.weight",)),
)


Count = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
PerHead = Annotated[int, msgspec.Meta(ge=1, le=2**14)]  # a number of heads, or the width of one


class Sizes(msgspec.Struct):
    """Describes the types and ranges of the fields that all families share; which are needed is the family's matter."""

    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=2**24)] | None = None
    hidden_size: Count | None = None
    intermediate_size: Annotated[int, msgspec.Meta(ge=1, le=2**22)] | None = None
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=2**12)] | None = None
    num_attention_heads: PerHead | None = None
    num_key_value_heads: PerHead | None = None
    head_dim: PerHead | None = None
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=2**31)] | None = None
    rms_norm_eps: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    rope_theta: Annotated[float, msgspec.Meta(gt=0)] | None = None
    linear_num_key_heads: PerHead | None = None
    linear_num_value_heads: PerHead | None = None
    linear_key_head_dim: PerHead | None = None
    linear_value_head_dim: PerHead | None = None
    linear_conv_kernel_dim: Annotated[int, msgspec.Meta(ge=2, le=2**8)] | None = None
    full_attention_interval: Annotated[int, msgspec.Meta(ge=1, le=2**12)] | None = None
    global_head_dim: PerHead | None = None
    num_global_key_value_heads: PerHead | None = None
    num_kv_shared_layers: Annotated[int, msgspec.Meta(ge=0, le=2**12)] | None = None
    hidden_size_per_layer_input: Annotated[int, msgspec.Meta(ge=0, le=2**14)] | None = None
    vocab_size_per_layer_input: Annotated[int, msgspec.Meta(ge=1, le=2**24)] | None = None
    sliding_window: Annotated[int, msgspec.Meta(ge=0, le=2**31)] | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    layer_types: list[str] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


def check_sizes(fields: Fields, where: str) -> None:
    """Checks the types and ranges of shared fields, before anything is made of these sizes.

    Raises:
      UserError: names the field.
    """
    of_form(fields, Sizes, where, advice="as in the configs of transformers")
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    if heads and width and not fields.get("head_dim") and width < heads:
        raise UserError(f"{where}: hidden_size {width} is less than num_attention_heads {heads}")


def read_sizes(fields: Fields) -> Fields:
    """Returns the fields of a `DecoderConfig` that all families name alike."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    return {
        "vocab": fields["vocab_size"],
        "width": width,
        "layers": fields["num_hidden_layers"],
        "heads": heads,
        "kv_heads": fields.get("num_key_value_heads") or heads,
        "head_width": fields.get("head_dim") or width // heads,
        "feed_forward": fields["intermediate_size"],
        "norm_epsilon": fields.get("rms_norm_eps", 1e-6),
        "max_positions": fields.get("max_position_embeddings", 2048),
        "tied_embeddings": fields.get("tie_word_embeddings", False),
    }


def read_attention_bias(fields: Fields) -> dict[str, bool]:
    """Returns the biases of all four projections of attention, which one field switches."""
    bias = fields.get("attention_bias", False)
    return {"qkv_bias": bias, "o_bias": bias}


def accept_only(fields: Fields, accepted: Fields, where: str) -> None:
    """Refuses other values of fields that would change the result.

    Raises:
      UserError: a field has a value for which the decoder has no computation.
    """
    for name, value in accepted.items():
        if fields.get(name, value) != value:
            raise UserError(f"{where}: {name} = {fields[name]!r} is not supported; accepted: {value!r}")


def read_rope(fields: Fields, where: str, default_theta: float = 10000.0, partial: bool = False) -> RopeConfig:
    """Reads rotary positions in either spelling: `rope_parameters`, or `rope_theta` and `rope_scaling`, which wins.

    Args:
      partial: the family rotates a part of each head, if `partial_rotary_factor` says so.

    Raises:
      UserError: the kind of scaling is not supported.
    """
    own = {"rope_theta": fields.get("rope_theta", default_theta)}
    if fields.get("partial_rotary_factor") is not None:
        own["partial_rotary_factor"] = fields["partial_rotary_factor"]
    scaling = {**own, **(fields.get("rope_scaling") or fields.get("rope_parameters") or {})}
    if fields.get("original_max_position_embeddings"):
        scaling["original_max_position_embeddings"] = fields["original_max_position_embeddings"]
    return scaled_rope(scaling, fields, where, partial)


def scaled_rope(scaling: Fields, fields: Fields, where: str, partial: bool = False) -> RopeConfig:
    """Translates `rope_parameters` of a config.

    Raises:
      UserError: the kind of scaling is not supported.
    """
    if not partial:
        accept_only(scaling, {"partial_rotary_factor": 1.0}, where)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise UserError(f"{where}: rope type {kind!r} is not supported; accepted: {', '.join(SCALINGS)}")
    sizes = read_sizes(fields)
    return make_rope(scaling, sizes["head_width"], sizes["max_positions"])


def read_layer_types(fields: Fields, kinds: dict[str, LayerKind], default: Sequence[str], where: str) -> Pattern:
    """Returns the kinds of the layers by `layer_types`.

    Args:
      kinds: for each type of layer.
      default: types where the field is missing.

    Raises:
      UserError: a type of layer is not supported, or their number is not that of the layers.
    """
    types = fields.get("layer_types") or default
    unknown = sorted(set(types) - set(kinds))
    if unknown:
        raise UserError(f"{where}: layer_types has {unknown[0]!r}; accepted: {', '.join(kinds)}")
    if len(types) != fields["num_hidden_layers"]:
        raise UserError(f"{where}: layer_types has {len(types)} entries for {fields['num_hidden_layers']} layers")
    return tuple(kinds[name] for name in types)


def read_windowed_layers(fields: Fields, full_theta: float, sliding_theta: float, interval: int, where: str) -> Pattern:
    """Returns the kinds of layers that have a window but for every `interval`-th, with rotary positions for each type.

    Earlier versions of transformers have no `rope_parameters` for each type; their `rope_scaling` is of the layers
    without a window.

    Args:
      full_theta, sliding_theta: bases where `rope_parameters` has none.

    Raises:
      UserError: as `scaled_rope` and `read_layer_types`.
    """
    ropes, scaling = fields.get("rope_parameters") or {}, fields.get("rope_scaling") or {}
    full = {"rope_theta": full_theta, **(ropes.get(FULL) or {}), **scaling}
    sliding = {"rope_theta": sliding_theta, **(ropes.get(SLIDING) or {})}
    for rope in (full, sliding):
        # transformers reads neither here.
        accept_only(rope, {"truncate": True} | ({} if "rope_type" in rope else {"type": "default"}), where)
    kinds = {
        FULL: LayerKind(scaled_rope(full, fields, where)),
        SLIDING: LayerKind(scaled_rope(sliding, fields, where), fields.get("sliding_window", 4096)),
    }
    default = [SLIDING if (layer + 1) % interval else FULL for layer in range(fields["num_hidden_layers"])]
    return read_layer_types(fields, kinds, default, where)
