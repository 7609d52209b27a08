"""Finds the tensors of a checkpoint folder."""

import json
import pathlib
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from rdjax.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class TensorFile(NamedTuple):
    """Holds the file that a tensor is in, and its shape."""

    path: pathlib.Path
    shape: tuple[int, ...]


def index_tensors(folder: pathlib.Path) -> dict[str, TensorFile]:
    """Finds every tensor of a checkpoint folder; only headers are read.

    Raises:
      UserError: there are no safetensors, or a file is missing or corrupt.
    """
    tensors: dict[str, TensorFile] = {}
    for name in _file_names(folder):
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


def _file_names(folder: pathlib.Path) -> list[str]:
    """Returns the names of the folder's weight files, from its index if it has one."""
    if not (folder / INDEX).exists():
        return [SINGLE]
    try:
        return sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX}: not a safetensors index ({error})") from None


def _missing_weights(folder: pathlib.Path, path: pathlib.Path) -> str:
    """Returns an error message for a missing weights file; pickled weights come with a way out."""
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth"))
    if pickled:
        return (
            f"{pickled[0]}: pickled weights can run code and are not read; convert them once with transformers: "
            f"AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
        )
    return f"{path}: not found; a model folder holds config.json and *.safetensors"
