"""Orbax checkpoints of what a run cannot recompute: trained state and where the run stands."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from rdjax.parallel.processes import broadcast_from_first


class Checkpoints:
    """Checkpoints of one stage under `folder`; the newest `keep` stay.

    A save is written beside the others and renamed when it is whole, so a killed run leaves none half-written.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        # Saves are synchronous: adapters are small, and a donated buffer must not change under a save.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest(self) -> int | None:
        """The newest saved step that the first process sees, or None."""
        newest = self._manager.latest_step()
        step = broadcast_from_first(-1 if newest is None else newest)
        return None if step < 0 else step

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves a tree of arrays and a JSON-able record of progress."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        self._manager.save(step, args=args)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint, with the shapes, dtypes and shardings of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest(), args=args)
        return restored.state, restored.progress

    def close(self) -> None:
        self._manager.close()
