"""Loads a language model: decoder, weights on the mesh, tokenizer."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import msgspec
from absl import logging
from flax import nnx
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from jax.sharding import Mesh
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.families.registry import decoder_config_from_hf, read_fields
from rdjax.models.fingerprint import checkpoint_fingerprint
from rdjax.models.fp8 import read_block
from rdjax.models.layers import training_layout
from rdjax.models.peft_config import CONFIG_FILE
from rdjax.models.sharding import check_mesh, param_shardings
from rdjax.models.tensor_files import check_no_pointer
from rdjax.models.weights import abstract_params, load_params, untie_other_head
from rdjax.parallel.mesh import device_of
from rdjax.storage.files import check_regular, read_json_object, user_path
from rdjax.storage.records import Token, of_form

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
EMBEDDED = ("rulebook", "rulebook-language")  # models that the package carries
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
AS_WRITTEN = "as transformers writes it"  # what is advised where a file has another form
# Fields of generation_config.json that change what transformers generates without sampling, and the values that do not.
GENERATION = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "stop_strings": None,
    "guidance_scale": 1.0,
    "penalty_alpha": None,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "dola_layers": None,
    "watermarking_config": None,
}
OTHER_FORMATS = ["consolidated*", "original/*", "metal/*", "onnx/*", "openvino/*", "runs/*"]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Holds what every command needs of a model; `base` is the only copy of the weights.

    Attributes:
      name: its folder or hub id, which the config of an adapter names as its base.
      config: of the decoder.
      graph: NNX graph definition; merged with `base` it is a `Decoder`.
      base: parameters on the mesh, in the layout of `layers.training_layout`.
      tokenizer: a fast Hugging Face tokenizer.
      eos_ids: the tokens at which generation ends.
      mesh: of devices.
      fingerprint: the `checkpoint_fingerprint` of its folder; empty where a plan has no files.
    """

    name: str
    config: DecoderConfig
    graph: nnx.GraphDef
    base: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    mesh: Mesh
    fingerprint: str = ""


def resolve_dtype(name: str, mesh: Mesh):
    """Returns a dtype by its name; "auto" is float32 on CPUs and bfloat16 on accelerators."""
    if name == "auto":
        return jnp.float32 if device_of(mesh).platform == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


def resolve_folder(path: str, what: str) -> pathlib.Path:
    """Returns the folder of a model or adapter: a local one, an embedded model's, or a download from the hub.

    Args:
      what: "model" or "adapter". Of a model config.json comes first: one that does not load is not downloaded.

    Raises:
      UserError: there is no such folder and no such repository, the hub gives no access, or the model is not supported.
    """
    if path in EMBEDDED:
        return ASSETS / path
    folder = user_path(path)
    if folder.is_dir():
        for file in folder.iterdir():
            if not file.is_dir():
                check_regular(file)
        return folder
    try:
        if what == "model":
            file = pathlib.Path(huggingface_hub.hf_hub_download(path, "config.json"))
            decoder_config_from_hf(read_fields(file.parent), f"{path}: config.json")
        return pathlib.Path(
            huggingface_hub.snapshot_download(path, allow_patterns=HUB_FILES, ignore_patterns=OTHER_FORMATS)
        )
    except GatedRepoError:
        advice = f"accept its terms at https://huggingface.co/{path}, then run `hf auth login` or set HF_TOKEN"
        raise UserError(f"{what} {path!r} is gated: {advice}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise UserError(
            f"{what} {path!r} is no folder and not in the hub's cache, and the hub cannot be reached"
        ) from None
    except EntryNotFoundError:
        raise UserError(f"{what} {path!r}: the repository has no config.json") from None
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:  # of this machine: a full disk, no permission
            raise
        raise UserError(
            f"{what} {path!r} is neither a folder nor a repository of the hub (a private one needs HF_TOKEN)"
        ) from None


def load_model(path: str, dtype: str, mesh: Mesh, int8: bool = False) -> LanguageModel:
    """Loads a Hugging Face checkpoint onto the mesh.

    Args:
      int8: quantise the blocks' kernels; everything else has `dtype`.

    Raises:
      UserError: the folder, a file or a field of it does not fit.
    """
    folder = resolve_folder(path, "model")
    fields, where = read_fields(folder), str(folder / "config.json")
    fp8_block = read_block(fields, where)
    config = untie_other_head(folder, decoder_config_from_hf(fields, where))
    check_no_adapter(folder)
    check_mesh(mesh, config)
    tokenizer = load_tokenizer(folder, config)
    graph, abstract = abstract_params(config, resolve_dtype(dtype, mesh), int8, mesh)
    shardings = param_shardings(mesh, abstract)
    base = load_params(folder, config, resolve_dtype(dtype, mesh), shardings, int8, fp8_block)
    base = training_layout(base, config.layers, mesh)
    local = path in EMBEDDED or user_path(path).is_dir()
    name = str(folder.resolve()) if local else path
    eos_ids, fingerprint = read_eos_ids(folder, fields, tokenizer.eos_token_id), checkpoint_fingerprint(folder)
    return LanguageModel(name, config, graph, base, tokenizer, eos_ids, mesh, fingerprint)


def check_no_adapter(folder: pathlib.Path) -> None:
    """Refuses with UserError a model folder that has an adapter beside the weights: transformers would apply it."""
    path = folder / CONFIG_FILE
    if path.exists():
        raise UserError(
            f"{path}: the folder holds a model and an adapter, and transformers would load both; move the adapter's "
            "files to a folder of their own, and name that as the adapter (config.model.adapter, --adapter)"
        )


def fit_context(model: LanguageModel, tokens: int) -> LanguageModel:
    """Returns the model for sequences of up to `tokens` tokens, which matters to LongRoPE (Phi 3 and 4).

    All sequences are then rotated alike: a teacher's, which the rule makes longer, as the student's. transformers
    decides for each batch by its longest sequence, and vLLM, as here, once.
    """
    config = model.config.for_sequences_of(tokens)
    if config == model.config:
        return model
    dtype = jax.tree.leaves(model.base["norm"])[0].dtype
    int8 = "scale" in model.base["layers"]["mlp"]["down_proj"]
    graph, _ = abstract_params(config, dtype, int8, model.mesh)
    return dataclasses.replace(model, config=config, graph=graph)


def ended_by(model: LanguageModel, end_id: int) -> LanguageModel:
    """Returns the model with a token that ends responses before its other ones; it is the one that is learnt."""
    return dataclasses.replace(model, eos_ids=tuple(dict.fromkeys([end_id, *model.eos_ids])))


def check_embedded(model: LanguageModel, ids: Iterable[int], where: str) -> None:
    """Checks that the embedding has a row for each token.

    Raises:
      UserError: names one that it has none for.
    """
    beyond = next((number for number in ids if number >= model.config.vocab), None)
    if beyond is not None:
        token = model.tokenizer.convert_ids_to_tokens(beyond)
        raise UserError(f"{where}: the model has no embedding for the token {token!r}; leave it out")


def load_tokenizer(folder: pathlib.Path, config: DecoderConfig) -> PreTrainedTokenizerBase:
    """Loads the folder's tokenizer and checks it against the embedding.

    Raises:
      UserError: it cannot be read, is not fast, does not fit the embedding, or has no end-of-sequence token.
    """
    for path in folder.glob("*tokenizer*"):
        check_no_pointer(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare exceptions on unreadable files
        raise UserError(f"{folder}: no readable tokenizer ({error})") from None
    template = folder / "chat_template.json"  # of a model of several parts, whose processor alone reads it
    if not tokenizer.chat_template and template.exists():
        fields = of_form(read_json_object(template, ""), ProcessorTemplate, str(template), AS_WRITTEN)
        tokenizer.chat_template = fields["chat_template"]
    added = set(tokenizer.get_added_vocab())
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= config.vocab}
    if beyond - added:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the embedding only {config.vocab} rows")
    if beyond:  # such as the image token of Gemma 3, which its models without images have no row for
        logging.warning("%s: the embedding has no row for %s", folder, ", ".join(sorted(beyond)))
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: a fast tokenizer (tokenizer.json) is needed to align responses by character")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end-of-sequence token; responses could not end")
    return tokenizer


class ProcessorTemplate(msgspec.Struct):
    """Describes `chat_template.json`."""

    chat_template: str


class Ends(msgspec.Struct):
    """Describes what config.json and generation_config.json say of the end of a sequence."""

    eos_token_id: Token | list[Token] | None = None


def read_eos_ids(folder: pathlib.Path, fields: dict[str, Any], own: int) -> tuple[int, ...]:
    """Returns the tokens that end a response: the tokenizer's, and those that the files name.

    Warns of what else `generation_config.json` says of generation: rdjax takes the most likely tokens of the model.

    Args:
      fields: of config.json, which counts where `generation_config.json` names none.
      own: the tokenizer's end-of-sequence token.

    Raises:
      UserError: a file names what is no token.
    """
    path = folder / "generation_config.json"
    generation = read_json_object(path, "") if path.exists() else {}
    for name, neutral in GENERATION.items():
        if generation.get(name) not in (None, neutral):
            logging.warning("%s: %s = %s is not applied to what rdjax generates", path, name, generation[name])
    text = fields.get("text_config") or {}
    for where, source in ((str(path), generation), ("config.json", fields), ("text_config", text)):
        named = of_form(source, Ends, where, AS_WRITTEN).get("eos_token_id")
        if named is not None:
            return tuple(dict.fromkeys([own, *(named if isinstance(named, list) else [named])]))
    return (own,)
