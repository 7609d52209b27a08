"""Saves and restores with Orbax what a run cannot recompute: its trained state and its progress."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from rdjax.parallel.processes import broadcast_from_first


class Checkpoints:
    """Manages the checkpoints of one stage under `folder`, of which the newest `keep` are kept.

    Orbax writes to a temporary folder and renames it when it is complete, so a killed run leaves no partial checkpoint.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        # Saves are synchronous: adapters are small, and a donated buffer must not change under a save.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """Returns the newest step that the first process finds, or None."""
        newest = self._manager.latest_step()
        step = broadcast_from_first(-1 if newest is None else newest)
        return None if step < 0 else step

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves a tree of arrays, and a record of the progress that JSON can hold."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=args)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the newest checkpoint into arrays with the shapes, dtypes and shardings of `like`.

        Returns:
          The tree of arrays, and the record of the progress.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest(), args=args)
        return restored.state, restored.progress

    def close(self) -> None:
        """Closes Orbax's manager."""
        self._manager.close()
