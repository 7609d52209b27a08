"""Loads the parameters of a decoder from Hugging Face checkpoints, and saves them, by the family's weight table."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding
from safetensors.numpy import save_file

from rdjax.errors import UserError, needing
from rdjax.models.config import SHARING, DecoderConfig
from rdjax.models.decoder import Decoder
from rdjax.models.families.registry import FAMILIES
from rdjax.models.fp8 import is_scale, read_weight
from rdjax.models.linear import quantise
from rdjax.models.tensor_files import SINGLE, TensorFile, TensorReader, all_finite, index_tensors
from rdjax.models.weight_table import Row, Shape, rows_of
from rdjax.storage.files import replacing

COMPARED_ROWS = 8192  # of head and embedding at a time


def abstract_params(
    config: DecoderConfig, dtype, int8: bool = False, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Returns the graph definition of a decoder and the shapes of its parameters, without allocating them."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, dtype, int8=int8, mesh=mesh, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


class UsedRow(NamedTuple):
    """Holds a row of the weight table, the shapes of its parameters (of one layer, if stacked), and its layers."""

    row: Row
    shapes: list[Shape]
    layers: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Returns the names of the row's tensors, in layer order."""
        return self.row.names(self.layers)


def used_rows(config: DecoderConfig) -> list[UsedRow]:
    """Returns the rows of the weight table that a decoder uses."""
    _, params = abstract_params(config, jnp.float32)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(params, sep=".").items()}
    rows = rows_of(FAMILIES[config.family].table, shapes)
    return [
        UsedRow(
            row,
            [shapes[path][1:] if row.stacked else shapes[path] for path in row.paths],
            config.layers_of(row.paths[0]),
        )
        for row in rows
    ]


def checkpoint_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Returns the name and shape of every tensor of a checkpoint."""
    return {name: used.row.tensor_shape(used.shapes) for used in used_rows(config) for name in used.names}


def index_decoder(folder: pathlib.Path, family: str) -> dict[str, TensorFile]:
    """Finds every tensor of a checkpoint folder, the decoder's by their names in the family's table.

    Raises:
      UserError: as `index_tensors`.
    """
    return {table_name(name, family): file for name, file in index_tensors(folder).items()}


def table_name(name: str, family: str) -> str:
    """Returns what a tensor of a file is called in the family's table."""
    for stored, table in FAMILIES[family].prefixes:
        if name.startswith(stored):
            return table + name.removeprefix(stored)
    return name


def check_tensors(config: DecoderConfig, tensors: dict[str, TensorFile], where: str) -> None:
    """Checks a checkpoint against the weight table: it has exactly the tensors of the table, in their shapes.

    Raises:
      UserError: names all faults in one message.
    """
    faults, expected = [], checkpoint_shapes(config)
    for name, shape in expected.items():
        if name not in tensors:
            faults.append(f"{name} is missing")
        elif tensors[name].shape != shape:
            faults.append(f"{name} has shape {list(tensors[name].shape)}, config.json says {list(shape)}")
    sharing = "|".join(str(layer) for layer in range(config.layers) if config.kind_of(layer).mixer in SHARING)
    patterns = [pattern.replace("{sharing}", sharing or "-") for pattern in FAMILIES[config.family].ignored]
    ignored = [*patterns, *(["lm_head.weight"] if config.tied_embeddings else [])]
    for name in sorted(set(tensors) - set(expected)):
        if not is_scale(name, tensors) and not any(re.fullmatch(pattern, name) for pattern in ignored):
            faults.append(f"{name} is not a tensor of this architecture")
    if faults:
        raise UserError(f"{where}: the weights do not fit: " + "; ".join(faults))


def untie_other_head(folder: pathlib.Path, config: DecoderConfig) -> DecoderConfig:
    """Returns a config without tied embeddings if the checkpoint has a head that is not its embedding.

    transformers 5 does so too: what is stored counts more than `tie_word_embeddings`.

    Raises:
      UserError: as `index_tensors`.
    """
    if not config.tied_embeddings:
        return config
    tensors, pair = index_decoder(folder, config.family), ("lm_head.weight", "model.embed_tokens.weight")
    if not all(name in tensors for name in pair):
        return config
    reader, (rows, _) = TensorReader(tensors), tensors[pair[0]].shape
    blocks = (slice(begin, min(begin + COMPARED_ROWS, rows)) for begin in range(0, rows, COMPARED_ROWS))
    if all(np.array_equal(*(reader.read(name, (block,)) for name in pair)) for block in blocks):
        return config
    logging.warning("%s: lm_head.weight is not the embedding; tie_word_embeddings is ignored", folder)
    return dataclasses.replace(config, tied_embeddings=False)


def load_params(
    folder: pathlib.Path,
    config: DecoderConfig,
    dtype,
    shardings: dict[str, Any],
    int8: bool = False,
    fp8_block: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Reads a checkpoint straight onto devices, slice by slice: every process reads what its devices need.

    Args:
      folder: of config.json and *.safetensors.
      config: read from that folder.
      dtype: of the parameters in memory.
      shardings: a tree of `jax.sharding.Sharding`, like the parameters.
      int8: quantise the blocks' kernels, one by one as they are read.
      fp8_block: of a checkpoint in FP8 (`fp8.read_block`).

    Returns:
      The parameters, a nested dict of arrays, layers stacked.
    """
    tensors = index_decoder(folder, config.family)
    check_tensors(config, tensors, str(folder))
    placed, reader = flatten_dict(shardings, sep="."), TensorReader(tensors)
    read = functools.partial(read_weight, reader, block=fp8_block)
    params = {}
    for used in used_rows(config):
        for part, path in enumerate(used.row.paths):
            array = _load_parameter(read, used, part, dtype, placed[path])
            paths = path, path.replace(".kernel", ".scale")
            if int8 and path.startswith("layers.") and path.endswith(".kernel") and paths[1] in placed:
                both = jax.jit(quantise, out_shardings=tuple(placed[path] for path in paths))(array)
                params |= zip(paths, both, strict=True)
            else:
                params[path] = array
    return unflatten_dict(params, sep=".")


def _load_parameter(
    read_tensor: Callable[[str, tuple[slice, ...]], np.ndarray],
    used: UsedRow,
    part: int,
    dtype,
    sharding: Sharding,
) -> jax.Array:
    """Reads one parameter of a row, stacked over layers if the row is."""
    (row, shapes, layers), names = used, used.names
    shape = (len(layers), *shapes[part]) if row.stacked else shapes[part]

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = read_tensor(name, row.tensor_slices(shapes, part, index))
        if not all_finite(tensor):
            raise UserError(f"the weights of the model: {name} has numbers that are not finite (NaN or infinity)")
        return row.from_tensor(tensor)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        array = np.empty(sharding.shard_shape(shape), dtype)
        if not row.stacked:
            array[...] = read(names[0], index)
            return array
        for number, name in enumerate(names[index[0]]):
            array[number] = read(name, index[1:])
        return array

    # One device after the other, so that host memory never holds more than one device's part twice.
    indices = sharding.addressable_devices_indices_map(shape)
    parts = [jax.device_put(shard(index), device).block_until_ready() for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def save_params(
    folder: pathlib.Path, config: DecoderConfig, params: dict[str, Any], dtype, base: pathlib.Path | None = None
) -> None:
    """Writes `model.safetensors` in Hugging Face's names and layout, in `dtype`; layers must be stacked.

    Args:
      base: the checkpoint that the parameters come from. Their tensors get its names, and its further tensors, of other
        parts of the model, are copied.

    Raises:
      UserError: `dtype` cannot hold a parameter.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep=".").items()}
    tensors: dict[str, np.ndarray] = {}
    for used in used_rows(config):
        row = used.row
        for number, name in enumerate(used.names):
            parts = [flat[path][number] if row.stacked else flat[path] for path in row.paths]
            tensor = np.ascontiguousarray(row.to_tensor(parts))
            with np.errstate(over="ignore"):
                tensors[name] = tensor.astype(dtype)
            if not all_finite(tensors[name]) and all_finite(tensor):
                raise UserError(
                    f"{name} has numbers that {jnp.dtype(dtype).name} cannot hold; accepted: bfloat16 or float32"
                )
    if base is not None:
        tensors = _with_names_of(tensors, base, config)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with needing(size), replacing(folder / SINGLE) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _with_names_of(tensors: dict[str, np.ndarray], base: pathlib.Path, config: DecoderConfig) -> dict[str, np.ndarray]:
    """Returns the decoder's tensors under the names of a checkpoint, and the checkpoint's tensors of other parts."""
    indexed, named = index_decoder(base, config.family), {}
    reader, tied = TensorReader(indexed), ["lm_head.weight"] if config.tied_embeddings else []
    for name, file in indexed.items():
        if name in tensors:
            named[file.name] = tensors[name]
        elif name not in tied and not is_scale(name, indexed):
            named[file.name] = reader.read(name)
    return named
