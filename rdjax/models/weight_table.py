"""Relates the tensors of a checkpoint to the parameters of a decoder; the same rows load and save.

A transform says how a tensor follows from its parameters. `same`: as it is. `transpose`: the tensor is [out, in], the
parameter [in, out]; where a row has several parameters, the tensor holds them one below the other, along `out`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Row(NamedTuple):
    """Relates one tensor to one parameter, or to several that a checkpoint fuses.

    Attributes:
      tensor: Hugging Face's name. `{layer}` stands for a layer's number: the tensors of all layers that have it are
        stacked along a new first axis. `{projection}` stands for the path of any projection of a block.
      paths: of the parameters.
      transform: "same" or "transpose".
    """

    tensor: str
    paths: tuple[str, ...]
    transform: str = "same"

    @property
    def stacked(self) -> bool:
        """Tells whether the row stands for one tensor of each layer."""
        return "{layer}" in self.tensor

    def names(self, layers: Sequence[int]) -> list[str]:
        """Returns the names of the row's tensors, one for each of these layers if it is stacked."""
        return [self.tensor.replace("{layer}", str(layer)) for layer in layers] if self.stacked else [self.tensor]

    def tensor_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Returns the shape of one tensor, from the shapes of its parameters (of one layer)."""
        if self.transform == "same":
            return tuple(shapes[0])
        return (sum(columns for _, columns in shapes), shapes[0][0])

    def tensor_slices(self, shapes: Sequence[Shape], part: int, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Returns where a tensor holds the part `index` of its parameter number `part`.

        Args:
          shapes: of the parameters (of one layer).
        """
        if self.transform == "same":
            return index
        before = sum(columns for _, columns in shapes[:part])
        rows, columns = (range(size)[at] for size, at in zip(shapes[part], index, strict=True))
        return slice(before + columns.start, before + columns.stop), slice(rows.start, rows.stop)

    def from_tensor(self, array: np.ndarray) -> np.ndarray:
        """Returns what `tensor_slices` selects in the layout of the parameter."""
        return array if self.transform == "same" else array.T

    def to_tensor(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Returns a tensor from its parameters (of one layer)."""
        return parts[0] if self.transform == "same" else np.concatenate([part.T for part in parts])


def rows_of(table: Sequence[Row], paths: Iterable[str]) -> list[Row]:
    """Returns the rows of a table for the parameters that a decoder has; `{projection}` is filled in.

    Raises:
      ValueError: no row holds one of the parameters.
    """
    rows: dict[Row, None] = {}
    for path in paths:
        found = next((row for template in table if (row := _filled_in(template, path))), None)
        if found is None:
            raise ValueError(f"no row of the weight table holds the parameter {path}")
        rows[found] = None
    return list(rows)


def _filled_in(row: Row, path: str) -> Row | None:
    """Returns the row if it holds the parameter, with `{projection}` filled in; else None."""
    if path in row.paths:
        return row
    before, mark, after = row.paths[0].partition("{projection}")
    if not mark or not path.startswith(before) or not path.endswith(after):
        return None
    projection = path[len(before) : len(path) - len(after)]
    return row._replace(tensor=row.tensor.replace(mark, projection), paths=(path,))
