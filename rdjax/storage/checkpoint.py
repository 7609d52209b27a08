"""Saves and restores with Orbax what a run cannot recompute: its trained state and its progress."""

import itertools
import pathlib
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from rdjax.errors import needing
from rdjax.parallel.processes import barrier, broadcast_from_first, is_first
from rdjax.storage.sums import SUMS, describe_damage, write_sums


class Restored(NamedTuple):
    """Holds a checkpoint that was read.

    Attributes:
      state: the tree of arrays.
      progress: the record that JSON can hold.
    """

    step: int
    state: Any
    progress: dict[str, Any]


class Checkpoints:
    """Manages the checkpoints of one stage under `folder`, of which the newest two are kept.

    Orbax writes to a temporary folder and renames it when it is complete, so a killed run leaves no partial checkpoint.
    """

    def __init__(self, folder: pathlib.Path):
        # Saves are synchronous: adapters are small, and a donated buffer must not change under a save.
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False)
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves a tree of arrays, and a record of the progress that JSON can hold, and records their checksums."""
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        with needing(sum(leaf.nbytes for leaf in jax.tree.leaves(state))):
            self._manager.save(step, args=args)
        if is_first():
            saved = self.folder / str(step)
            write_sums(saved, sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()))
        barrier()

    def restore_newest(self, like: Any) -> Restored | None:
        """Reads the newest checkpoint that is whole; those after it are damaged, and set aside with a warning.

        Args:
          like: arrays with the shapes, dtypes and shardings to read into.

        Returns:
          What was saved; None if there is no checkpoint.
        """
        while (step := self._newest()) is not None:
            fault = self._fault(step)
            if not broadcast_from_first(bool(fault)):
                try:
                    return self._restore(step, like)
                except Exception as error:
                    # Its files are what was written: the machine lacks something. Of several processes the others may
                    # have read theirs, and would wait.
                    if self._has_sums(step) or jax.process_count() > 1:
                        raise
                    fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self._set_aside(step, fault)
        return None

    def close(self) -> None:
        """Closes Orbax's manager."""
        self._manager.close()

    def _newest(self) -> int | None:
        """Returns the newest step that the first process finds, or None."""
        newest = self._manager.latest_step()
        step = broadcast_from_first(-1 if newest is None else newest)
        return None if step < 0 else step

    def _fault(self, step: int) -> str:
        """Says what is wrong with a checkpoint's files, "" where nothing is or this process does not look."""
        return describe_damage(self.folder / str(step)) if is_first() else ""

    def _has_sums(self, step: int) -> bool:
        """Tells whether the checksums of a checkpoint are recorded; a kill can come between, and earlier versions."""
        return (self.folder / str(step) / SUMS).exists()

    def _set_aside(self, step: int, fault: str) -> None:
        """Renames a checkpoint that does not read, so that it is not the newest any more."""
        if is_first():
            folder = self.folder / str(step)
            aside = next(path for n in itertools.count() if not (path := self.folder / f"damaged-{step}-{n}").exists())
            logging.warning("%s: damaged (%s); the one before is used, this one is now %s", folder, fault, aside.name)
            folder.rename(aside)
        barrier()
        self._manager.reload()

    def _restore(self, step: int, like: Any) -> Restored:
        """Reads a checkpoint."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        if restored.progress.get("updates", step) != step:
            raise ValueError(f"it is the checkpoint of update {restored.progress['updates']}")
        return Restored(step, restored.state, restored.progress)
