"""Finds the tensors of a checkpoint folder, and reads parts of them."""

import json
import pathlib
import re
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rdjax.errors import UserError
from rdjax.storage.files import check_regular, read_json_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(r"[\w.+ -]{1,200}\.safetensors")
GIT_LFS = b"version https://git-lfs.github.com/spec/"


class TensorFile(NamedTuple):
    """Holds the file that a tensor is in, its name there, and its shape."""

    path: pathlib.Path
    name: str
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
        check_regular(path)
        check_inside(path, folder)
        check_no_pointer(path)
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118 (a handle, not a dict)
                    tensors[key] = TensorFile(path, key, tuple(file.get_slice(key).get_shape()))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    return tensors


def check_inside(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Checks that a file that an index names is of its folder, also behind links.

    The cache of the Hugging Face hub keeps files in `blobs/` beside `snapshots/`, and links to them.

    Raises:
      UserError: it is elsewhere.
    """
    whole = folder.resolve()
    cache = whole.parents[1] / "blobs" if len(whole.parents) > 1 and whole.parent.name == "snapshots" else whole
    if not any(path.resolve().is_relative_to(root) for root in (whole, cache)):
        raise UserError(f"{path}: leads out of the folder, to {path.resolve()}; accepted: files of the folder itself")


def check_no_pointer(path: pathlib.Path) -> None:
    """Checks that a file is not the pointer that git leaves in its place without git-lfs.

    Raises:
      UserError: it is one.
    """
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise UserError(f"{path}: a pointer of git-lfs, not the file itself; run `git lfs pull` in its folder")


def _file_names(folder: pathlib.Path) -> list[str]:
    """Returns the names of the folder's weight files; as in transformers a single file counts before an index."""
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        return [SINGLE]
    try:
        names = sorted(set(read_json_object(folder / INDEX, "")["weight_map"].values()))
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX}: not a safetensors index ({error})") from None
    odd = [name for name in names if not isinstance(name, str) or not SHARD.fullmatch(name)]
    if odd:
        raise UserError(
            f"{folder / INDEX}: the file name {str(odd[0])[:80]!r}; accepted: names of *.safetensors in the same folder"
        )
    return names


def _missing_weights(folder: pathlib.Path, path: pathlib.Path) -> str:
    """Returns an error message for a missing weights file; pickled weights come with a way out."""
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth"))
    if pickled:
        return (
            f"{pickled[0]}: pickled weights can run code and are not read; convert them once with transformers: "
            f"AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
        )
    return f"{path}: not found; a model folder holds config.json and *.safetensors"


class TensorReader:
    """Reads parts of tensors; keeps the files open."""

    def __init__(self, tensors: dict[str, TensorFile]):
        self.tensors, self._files = tensors, {}

    def read(self, name: str, slices: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns a part of a tensor; all of it without slices.

        Raises:
          UserError: the part cannot be read.
        """
        path, stored, shape = self.tensors[name]
        if path not in self._files:
            self._files[path] = safe_open(path, framework="numpy")
        try:
            if not shape:
                return self._files[path].get_tensor(stored)
            part = self._files[path].get_slice(stored)
            if part.get_dtype() == "F8_E4M3":
                return _map_fp8(path, stored)[slices]
            return part[slices or (slice(None),)]
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: {stored} cannot be read ({error})") from None


def all_finite(array: np.ndarray) -> bool:
    """Tells whether no number is NaN or infinite."""
    if array.dtype == ml_dtypes.bfloat16:  # several times as fast as numpy's own test, which converts each number
        return not np.any((array.view(np.uint16) & 0x7F80) == 0x7F80)
    return bool(np.isfinite(array).all())


def _map_fp8(path: pathlib.Path, name: str) -> np.ndarray:
    """Maps a tensor in FP8 into memory: safetensors cannot give it to numpy, which knows no such numbers itself."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        fields = json.loads(file.read(length))[name]
    begin, _ = fields["data_offsets"]
    numbers = np.memmap(path, np.uint8, "r", offset=8 + length + begin, shape=tuple(fields["shape"]))
    return numbers.view(ml_dtypes.float8_e4m3fn)
