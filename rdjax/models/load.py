"""Loads a language model: decoder, weights on the mesh, tokenizer."""

import dataclasses
import json
import pathlib
from typing import Any

import huggingface_hub
import jax.numpy as jnp
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.families.registry import read_decoder_config
from rdjax.models.fingerprint import checkpoint_fingerprint
from rdjax.models.layers import training_layout
from rdjax.models.sharding import check_mesh, param_shardings
from rdjax.models.weights import abstract_params, load_params
from rdjax.parallel.mesh import device_of

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
EMBEDDED = ("rulebook", "rulebook-language")  # models that the package carries
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


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

    Raises:
      UserError: there is no such folder and no such repository.
    """
    if path in EMBEDDED:
        return ASSETS / path
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
        return folder
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(path, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
        raise UserError(
            f"{what} {path!r} is neither a folder nor a repository that can be reached on the hub"
        ) from None


def load_model(path: str, dtype: str, mesh: Mesh, int8: bool = False) -> LanguageModel:
    """Loads a Hugging Face checkpoint onto the mesh.

    Args:
      int8: quantise the blocks' kernels; everything else has `dtype`.

    Raises:
      UserError: the folder, a file or a field of it does not fit.
    """
    folder = resolve_folder(path, "model")
    config = read_decoder_config(folder)
    check_mesh(mesh, config)
    tokenizer = load_tokenizer(folder, config)
    graph, abstract = abstract_params(config, resolve_dtype(dtype, mesh), int8, mesh)
    base = load_params(folder, config, resolve_dtype(dtype, mesh), param_shardings(mesh, abstract), int8)
    base = training_layout(base, config.layers, mesh)
    local = path in EMBEDDED or pathlib.Path(path).expanduser().is_dir()
    name = str(folder.resolve()) if local else path
    eos_ids, fingerprint = _eos_ids(folder, tokenizer), checkpoint_fingerprint(folder)
    return LanguageModel(name, config, graph, base, tokenizer, eos_ids, mesh, fingerprint)


def load_tokenizer(folder: pathlib.Path, config: DecoderConfig) -> PreTrainedTokenizerBase:
    """Loads the folder's tokenizer and checks it against the embedding.

    Raises:
      UserError: it cannot be read, is not fast, does not fit the embedding, or has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare exceptions on unreadable files
        raise UserError(f"{folder}: no readable tokenizer ({error})") from None
    if len(tokenizer) > config.vocab:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the embedding only {config.vocab} rows")
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: a fast tokenizer (tokenizer.json) is needed to align responses by character")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no end-of-sequence token; responses could not end")
    return tokenizer


def _eos_ids(folder: pathlib.Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns the tokenizer's end-of-sequence token and those of `generation_config.json`."""
    path = folder / "generation_config.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: must hold a JSON object ({error})") from None
    listed = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *(number for number in listed if number is not None)]))
