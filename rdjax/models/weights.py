"""One table between Hugging Face tensor names and our parameter paths, read both ways.

A row is (pattern, path, transform). `{layer}` in a pattern stands for a layer number: those tensors are
stacked along a new first axis. A transform of "T" means that Hugging Face stores [out, in] where we
hold [in, out].
"""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rdjax.errors import UserError
from rdjax.models.config import DecoderConfig
from rdjax.models.decoder import PROJECTIONS, Decoder


class Row(NamedTuple):
    pattern: str
    path: str
    transform: str


TABLE = (
    Row("model.embed_tokens.weight", "embed_tokens", ""),
    Row("model.norm.weight", "norm.weight", ""),
    Row("lm_head.weight", "lm_head.kernel", "T"),
    Row("model.layers.{layer}.input_layernorm.weight", "layers.input_layernorm.weight", ""),
    Row("model.layers.{layer}.post_attention_layernorm.weight", "layers.post_attention_layernorm.weight", ""),
    *(Row(f"model.layers.{{layer}}.{name}.weight", f"layers.{name}.kernel", "T") for name in PROJECTIONS),
    *(Row(f"model.layers.{{layer}}.{name}.bias", f"layers.{name}.bias", "") for name in PROJECTIONS),
)

# Tensors that some checkpoints carry although the config determines them.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def abstract_params(
    config: DecoderConfig, dtype, int8: bool = False, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The graph definition of a decoder and its parameters as shapes, without allocating them."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype, int8=int8, mesh=mesh, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as {"a.b.c": leaf}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *rooms, name = path.split(".")
        node = tree
        for room in rooms:
            node = node.setdefault(room, {})
        node[name] = value
    return tree


def tensor_names(row: Row, layers: int) -> list[str]:
    """The Hugging Face tensors of a row, in layer order."""
    if "{layer}" not in row.pattern:
        return [row.pattern]
    return [row.pattern.replace("{layer}", str(layer)) for layer in range(layers)]


def used_rows(paths: dict[str, Any]) -> Iterator[tuple[Row, Any]]:
    """The rows of the table whose path is one of `paths`, each with that entry."""
    by_path = {row.path: row for row in TABLE}
    for path, leaf in paths.items():
        yield by_path[path], leaf


class TensorFile(NamedTuple):
    """Where a tensor lies, and its shape."""

    path: pathlib.Path
    shape: tuple[int, ...]


def index_tensors(folder: pathlib.Path) -> dict[str, TensorFile]:
    """Finds every tensor of a checkpoint folder; only headers are read.

    Raises:
      UserError: there are no safetensors, or a file is missing or corrupt.
    """
    if (folder / INDEX).exists():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / INDEX}: not a safetensors index ({error})") from None
    else:
        names = [SINGLE]
    tensors: dict[str, TensorFile] = {}
    for name in names:
        path = folder / name
        if not path.exists():
            raise UserError(_missing_weights(folder, path))
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
                    tensors[key] = TensorFile(path, tuple(file.get_slice(key).get_shape()))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    return tensors


def _missing_weights(folder: pathlib.Path, path: pathlib.Path) -> str:
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth"))
    if pickled:
        return (
            f"{pickled[0]}: pickled weights can run code and are not read; convert them once with transformers: "
            f"AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
        )
    return f"{path}: not found; a model folder holds config.json and *.safetensors"


def match_table(config: DecoderConfig, params: dict[str, Any], tensors: dict[str, TensorFile], where: str) -> None:
    """Checks a checkpoint against the table: every tensor is wanted once, is there, and has its shape.

    Raises:
      UserError: names all faults in one message.
    """
    faults, wanted = [], {}
    for row, leaf in used_rows(flatten(params)):
        shape = leaf.shape[1:] if "{layer}" in row.pattern else leaf.shape
        for name in tensor_names(row, config.layers):
            wanted[name] = tuple(reversed(shape)) if row.transform == "T" else tuple(shape)
    for name, shape in wanted.items():
        if name not in tensors:
            faults.append(f"{name} is missing")
        elif tensors[name].shape != shape:
            faults.append(f"{name} has shape {list(tensors[name].shape)}, config.json says {list(shape)}")
    ignored = [*IGNORED, *(["lm_head.weight"] if config.tied_embeddings else [])]
    for name in sorted(set(tensors) - set(wanted)):
        if not any(re.fullmatch(pattern, name) for pattern in ignored):
            faults.append(f"{name} is not a tensor of this architecture")
    if faults:
        raise UserError(f"{where}: the weights do not fit: " + "; ".join(faults))


@jax.jit
def quantise(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kernel [..., in, out] as int8 and the scale of each column, [..., out]: symmetric, round to nearest.

    Weight-only: nothing else changes, and the error of a weight is half a scale at most (absmax quantisation by
    column, Dettmers et al. 2022, arXiv 2208.07339, without its outlier decomposition).
    """
    kernel32 = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel32), axis=-2) / 127
    rounded = jnp.round(kernel32 / jnp.where(scale > 0, scale, 1.0)[..., None, :])
    return rounded.astype(jnp.int8), scale


def load_params(
    folder: pathlib.Path, config: DecoderConfig, dtype, shardings: dict[str, Any], int8: bool = False
) -> dict[str, Any]:
    """Reads a checkpoint straight onto devices, slice by slice: each process only those that its devices hold.

    Args:
      folder: of config.json and *.safetensors.
      config: read from that folder.
      dtype: of the parameters in memory.
      shardings: a tree of `jax.sharding.Sharding`, like the parameters.
      int8: quantise the blocks' kernels, one by one as they are read.

    Returns:
      The parameters, a nested dict of arrays.
    """
    _, params = abstract_params(config, dtype)
    tensors = index_tensors(folder)
    match_table(config, params, tensors, str(folder))
    placed = flatten(shardings)
    handles: dict[pathlib.Path, Any] = {}

    def read(name: str, index: tuple[slice, ...], transform: str) -> np.ndarray:
        path = tensors[name].path
        if path not in handles:
            handles[path] = safe_open(path, framework="numpy")
        try:
            part = handles[path].get_slice(name)[index[::-1] if transform == "T" else index]
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: {name} cannot be read ({error})") from None
        return part.T if transform == "T" else part

    def place(row: Row, leaf) -> jax.Array:
        names, sharding = tensor_names(row, config.layers), placed[row.path]
        stacked = "{layer}" in row.pattern

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            made = np.empty(sharding.shard_shape(leaf.shape), dtype)
            for number, name in enumerate(names[index[0]] if stacked else names):
                made[number if stacked else ...] = read(name, index[1:] if stacked else index, row.transform)
            return made

        # One device after the other: of what the devices hold, host memory never has more than one's part twice.
        indices = sharding.addressable_devices_indices_map(leaf.shape)
        parts = [jax.device_put(shard(index), device).block_until_ready() for device, index in indices.items()]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    loaded = {}
    for row, leaf in used_rows(flatten(params)):
        array = place(row, leaf)
        if int8 and row.path.endswith("_proj.kernel"):
            paths = row.path, row.path.replace(".kernel", ".scale")
            both = jax.jit(quantise, out_shardings=tuple(placed[path] for path in paths))(array)
            loaded |= zip(paths, both, strict=True)
        else:
            loaded[row.path] = array
    return unflatten(loaded)


def save_params(folder: pathlib.Path, params: dict[str, Any], dtype) -> None:
    """Writes `model.safetensors` in Hugging Face's names and layout, in `dtype`."""
    tensors: dict[str, np.ndarray] = {}
    for row, leaf in used_rows(flatten(params)):
        array = np.asarray(leaf)
        stacked = "{layer}" in row.pattern
        for name, part in zip(tensor_names(row, len(array)), array if stacked else [array], strict=stacked):
            tensors[name] = np.ascontiguousarray(part.T if row.transform == "T" else part).astype(dtype)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
