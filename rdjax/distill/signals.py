"""Where a stage's teacher signals come from: made once for all epochs, or anew for every batch.

The teacher is frozen, so what it shows for a pair never changes. Kept are the inputs of all blocks at the aligned
positions and the final state at the prediction positions, without padding; logits are recomputed from the latter
through the shared head, so the KL divergence stays exact over the whole vocabulary.
"""

import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rdjax.config import SIGNAL_PLACES
from rdjax.data.batches import Batch, places_in_rows, stack_members
from rdjax.data.positions import Begins
from rdjax.data.shapes import round_up
from rdjax.distill.step import signals_shardings, teacher_prefixes, teacher_signals
from rdjax.distill.teacher import Signals
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import put, row_multiple, rows_sharding
from rdjax.parallel.processes import max_over_processes, to_host, true_everywhere

# Shares of what is free that signals may take: the rest is for the step, and for everything else that runs.
DEVICE_SHARE, HOST_SHARE = 0.25, 0.5
MEMORY = pathlib.Path("/proc/meminfo")

Ask = Callable[[Batch], Signals]
Numbers = Sequence[Sequence[int]]  # of each member's pairs in one update


class SignalSource(NamedTuple):
    """The signals of a batch in two steps.

    Attributes:
      fetch: (numbers, their batch in host memory) -> what lies there of their signals, in numpy alone: a thread does it
        ahead of the step.
      show: (what was fetched, the batch on the mesh) -> the signals.
    """

    fetch: Callable[[Numbers, Batch], Any]
    show: Callable[[Any, Batch], Signals]


class Kept(NamedTuple):
    """What a member's teacher showed: the inputs of all blocks at aligned slots, final states at prediction slots."""

    inputs_NLD: np.ndarray
    final_ND: np.ndarray


class Chosen(NamedTuple):
    """Which of a member's kept slots stand in a batch's; padding shows the first."""

    aligned_ABQ: np.ndarray
    predict_ABP: np.ndarray


def make_signal_function(model: LanguageModel, teachers_M: Adapter, scale: float, prefix_C: jax.Array | None) -> Ask:
    """Asks the teachers about a batch. `prefix_C`: what all teacher prompts leave out; it is read here, once."""
    prefix_M = None
    if prefix_C is not None:
        prefix_M = teacher_prefixes(model.graph, model.base, teachers_M, prefix_C, scale)
    return lambda batch: teacher_signals(model.graph, model.base, teachers_M, batch, prefix_M, scale)


def abstract_signals(model: LanguageModel, batch: Batch) -> Signals:
    """The shapes of a batch's signals."""
    *micro, B, P = batch.weight_BP.shape
    dtype, width = model.base["embed_tokens"].dtype, model.config.width
    shapes = (*micro, model.config.layers, B, batch.hidden_weight_BQ.shape[-1], width), (*micro, B, P, width)
    made = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for shape, sharding in zip(shapes, signals_shardings(model.mesh), strict=True)
    )
    return Signals(*made)


def online_signals(ask: Ask, mesh: Mesh) -> SignalSource:
    """Asks the teachers anew for every batch."""
    # They lie there already; on a mesh of one device this gives the place the name that it has elsewhere.
    shardings = signals_shardings(mesh)
    return SignalSource(lambda numbers, batch: None, lambda held, batch: jax.device_put(ask(batch), shardings))


def signal_bytes(model: LanguageModel, begins_M: Sequence[Begins]) -> int:
    """What the signals of all members take."""
    states = sum(begins.aligned[-1] * model.config.layers + begins.predict[-1] for begins in begins_M)
    return int(states) * model.config.width * model.base["embed_tokens"].dtype.itemsize


def choose_place(size: int, mesh: Mesh) -> str:
    """The fastest of `SIGNAL_PLACES` in which `size` bytes leave room enough for all processes.

    Devices share them out, each host has them whole.
    """
    device = jax.local_devices()[0]
    # A CPU device's memory is the host's.
    memory = (device.memory_stats() if device.platform != "cpu" else None) or {}
    devices = row_multiple(mesh) * DEVICE_SHARE * (memory.get("bytes_limit", 0) - memory.get("bytes_in_use", 0))
    host = HOST_SHARE * _host_room()
    # On their way to devices they stand in the host's memory, and once more in the devices' order.
    rooms = min(devices, host / 2), host, math.inf
    return SIGNAL_PLACES[max_over_processes(next(number for number, room in enumerate(rooms) if size < room))]


def _host_room() -> float:
    """Bytes of memory that programs can have without swapping; where the system does not say, no limit is known."""
    if not MEMORY.exists():
        return math.inf
    return 1024 * int(re.search(r"^MemAvailable:\s*(\d+) kB", MEMORY.read_text(), re.MULTILINE)[1])


def signals_fingerprint(model: LanguageModel, teachers_M: Adapter, scale: float, texts: Any) -> str:
    """A hash of all that the signals follow from.

    Args:
      texts: the pairs' tokens and which of their positions are kept, as JSON takes them.
    """
    sums = to_host(_checksums({"base": model.base, "teachers": teachers_M}))
    said = {jax.tree_util.keystr(path): repr(leaf.tolist()) for path, leaf in jax.tree_util.tree_leaves_with_path(sums)}
    said |= {"config": repr(model.config), "dtype": str(model.base["embed_tokens"].dtype), "scale": scale}
    return hashlib.sha256(json.dumps([said, texts], sort_keys=True).encode()).hexdigest()


@jax.jit
def _checksums(tree: Any) -> Any:
    """Two sums of every array; the second weighs each number by its place, so that exchanged ones show."""

    def one(leaf: jax.Array) -> jax.Array:
        leaf32, place = leaf.astype(jnp.float32), jnp.zeros(leaf.shape, jnp.float32)
        for axis in range(leaf.ndim):
            place = place + jnp.cos((axis + 1.0) * jax.lax.broadcasted_iota(jnp.float32, leaf.shape, axis))
        return jnp.stack([jnp.sum(leaf32), jnp.sum(leaf32 * place)])

    return jax.tree.map(one, tree)


def cached_signals(
    model: LanguageModel,
    ask: Ask,
    begins_M: Sequence[Begins],
    batches: Iterable[Batch],
    place: str,
    folder: pathlib.Path,
) -> SignalSource:
    """Asks the teachers once for every pair and keeps what they show.

    Args:
      ask: `make_signal_function`.
      begins_M: of each member's pairs.
      batches: of all pairs in order; made only where nothing lies on disk yet.
      place: one of `SIGNAL_PLACES`.
      folder: named by `signals_fingerprint`; what lies on disk is here.
    """
    c, dtype = model.config, model.base["embed_tokens"].dtype
    complete = folder / "complete"
    found = place == "disk" and true_everywhere(complete.exists())
    if place == "disk":
        folder.mkdir(parents=True, exist_ok=True)
        if not found:
            complete.unlink(missing_ok=True)

    def room(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if place == "disk":
            return np.memmap(folder / name, dtype, "r" if found else "w+", shape=shape)
        return np.empty(shape, dtype)

    kept_M = [
        Kept(
            room(f"inputs-{number}", (begins.aligned[-1], c.layers, c.width)),
            room(f"final-{number}", (begins.predict[-1], c.width)),
        )
        for number, begins in enumerate(begins_M)
    ]
    if not found:
        _fill(kept_M, ask, batches)
    if place == "disk" and not found:
        for kept in kept_M:
            kept.inputs_NLD.flush()
            kept.final_ND.flush()
        complete.touch()
    return (_device_source if place == "device" else _host_source)(model, kept_M, begins_M)


def _fill(kept_M: Sequence[Kept], ask: Ask, batches: Iterable[Batch]) -> None:
    done_M = [[0, 0] for _ in kept_M]
    for batch in batches:
        weights = batch.hidden_weight_BQ, batch.weight_BP
        shown, *weights = to_host((ask(batch), *weights))
        inputs_MABQLD = np.moveaxis(shown.inputs_LBQD, 2, 4)
        for member, (kept, done) in enumerate(zip(kept_M, done_M, strict=True)):
            arrays = zip(kept, (inputs_MABQLD, shown.final_BPD), weights, strict=True)
            for part, (array, given, weight) in enumerate(arrays):
                real = given[member][weight[member] > 0]
                array[done[part] : done[part] + len(real)] = real
                done[part] += len(real)


def _choose(numbers: Numbers, begins_M: Sequence[Begins], batch: Batch) -> list[Chosen]:
    """Of each member, the slots of the numbered pairs where the batch has them."""
    A, B, Q = batch.hidden_weight_BQ.shape[1:]
    P = batch.weight_BP.shape[-1]
    return [
        Chosen(
            places_in_rows(own, begins.aligned, A * B, Q).reshape(A, B, Q),
            places_in_rows(own, begins.predict, A * B, P).reshape(A, B, P),
        )
        for own, begins in zip(numbers, begins_M, strict=True)
    ]


def _host_source(model: LanguageModel, kept_M: Sequence[Kept], begins_M: Sequence[Begins]) -> SignalSource:
    shardings = signals_shardings(model.mesh)

    def fetch(numbers: Numbers, batch: Batch) -> Signals:
        return stack_members(
            Signals(np.moveaxis(kept.inputs_NLD[chosen.aligned_ABQ], 3, 1), kept.final_ND[chosen.predict_ABP])
            for kept, chosen in zip(kept_M, _choose(numbers, begins_M, batch), strict=True)
        )

    return SignalSource(fetch, lambda held, batch: put(held, shardings))


def _device_source(model: LanguageModel, kept_M: Sequence[Kept], begins_M: Sequence[Begins]) -> SignalSource:
    def stacked(*arrays: np.ndarray) -> np.ndarray:
        """Of all members, padded to the longest and to what the devices can share out."""
        slots = round_up(max(map(len, arrays)), row_multiple(model.mesh))
        rooms = np.zeros((len(arrays), slots, *arrays[0].shape[1:]), arrays[0].dtype)
        for room, array in zip(rooms, arrays, strict=True):
            room[: len(array)] = array
        return rooms

    on_device = put(jax.tree.map(stacked, *kept_M), rows_sharding(model.mesh, leading=1))
    rows = rows_sharding(model.mesh, leading=2)
    take = jax.jit(_take, out_shardings=signals_shardings(model.mesh))

    def fetch(numbers: Numbers, batch: Batch) -> Chosen:
        return stack_members(_choose(numbers, begins_M, batch))

    return SignalSource(fetch, lambda held, batch: take(on_device, put(held, rows)))


def _take(kept_M: Kept, chosen_M: Chosen) -> Signals:
    """The signals [M, A, ...] of the chosen slots."""

    def one(kept: Kept, chosen: Chosen) -> Signals:
        inputs_ABQLD = jnp.take(kept.inputs_NLD, chosen.aligned_ABQ, axis=0)
        return Signals(jnp.moveaxis(inputs_ABQLD, 3, 1), jnp.take(kept.final_ND, chosen.predict_ABP, axis=0))

    return jax.vmap(one)(kept_M, chosen_M)
