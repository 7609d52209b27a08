"""Reads the decoder of text inside a model of several parts, whose config.json has a `text_config`."""

import dataclasses

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.families.common import Family, Fields, accept_only

# As transformers writes them now, and as earlier versions did.
PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
OTHER_PARTS = (r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*")


def wrap(
    name: str,
    families: dict[str, Family],
    other_parts: tuple[str, ...] = OTHER_PARTS,
    tied: bool = True,
    accepted: Fields | None = None,
) -> Family:
    """Returns the family of a model that wraps a decoder.

    Args:
      name: the wrapper's `model_type`.
      families: the decoders that it can hold, by their `model_type`, with equal tables; the first is the default.
      other_parts: patterns of the tensors of its other parts.
      tied: whether a config that does not say so means tied embeddings.
      accepted: values of fields of `text_config` that the wrapper, unlike the decoder alone, does not apply.
    """

    def read_config(fields: Fields, where: str) -> DecoderConfig:
        """Translates the fields of config.json; the wrapper's `tie_word_embeddings` counts."""
        text = dict(fields.get("text_config") or {})
        model_type = text.get("model_type", next(iter(families)))
        if model_type not in families:
            names = ", ".join(families)
            raise UserError(f"{where}: text_config.model_type {model_type!r} is not supported; accepted: {names}")
        accept_only(text, accepted or {}, f"{where}: text_config")
        text["tie_word_embeddings"] = fields.get("tie_word_embeddings", tied)
        config = families[model_type].read_config(text, f"{where}: text_config")
        return dataclasses.replace(config, family=name)

    table = next(iter(families.values())).table
    return Family(
        read_config, table, other_parts, PREFIXES, "model.language_model.", auto_class="AutoModelForImageTextToText"
    )
