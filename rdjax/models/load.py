"""A language model ready to run: decoder, weights on the mesh, tokenizer."""

import dataclasses
import json
import pathlib
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig, read_decoder_config
from rdjax.models.fingerprint import checkpoint_fingerprint
from rdjax.models.layers import loops_over_layers, unstack_layers
from rdjax.models.sharding import check_mesh, param_shardings
from rdjax.models.weights import abstract_params, load_params
from rdjax.parallel.mesh import device_of

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
EMBEDDED = ("rulebook", "rulebook-language")  # models that the package carries
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """What every command passes around; `base` is the only copy of the weights.

    Attributes:
      name: its folder, or its hub id: what an adapter's config names as its base.
      config: of the decoder.
      graph: NNX graph definition; with `base` it makes a `Decoder`.
      base: parameters on the mesh.
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
    """float32, bfloat16, or for "auto" the one that suits the mesh's devices."""
    if name == "auto":
        return jnp.float32 if device_of(mesh).platform == "cpu" else jnp.bfloat16
    return jnp.dtype(name)


def resolve_folder(path: str, what: str) -> pathlib.Path:
    """The folder of a model or adapter: a local one, an embedded model's, or a download from the hub.

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
      int8: hold the blocks' kernels as int8; all else stays `dtype`.

    Raises:
      UserError: the folder, a file or a field of it does not fit.
    """
    folder = resolve_folder(path, "model")
    config = read_decoder_config(folder)
    check_mesh(mesh, config)
    tokenizer = load_tokenizer(folder, config)
    graph, abstract = abstract_params(config, resolve_dtype(dtype, mesh), int8, mesh)
    base = load_params(folder, config, resolve_dtype(dtype, mesh), param_shardings(mesh, abstract), int8)
    if loops_over_layers(config, mesh):
        base = jax.jit(unstack_layers)(base)
    local = path in EMBEDDED or pathlib.Path(path).expanduser().is_dir()
    name = str(folder.resolve()) if local else path
    eos_ids, fingerprint = _eos_ids(folder, tokenizer), checkpoint_fingerprint(folder)
    return LanguageModel(name, config, graph, base, tokenizer, eos_ids, mesh, fingerprint)


def load_tokenizer(folder: pathlib.Path, config: DecoderConfig) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, checked against the embedding."""
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
    path = folder / "generation_config.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: must hold a JSON object ({error})") from None
    listed = named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *(number for number in listed if number is not None)]))
