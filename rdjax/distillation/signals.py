"""Provides the teachers' signals of a stage: computed once and cached, or computed anew for every batch.

The teacher is frozen, so its signals for a pair never change. The cache holds the inputs of all blocks at the aligned
positions and the final state at the prediction positions, without padding. Logits are recomputed from the final states
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
from absl import logging
from jax.sharding import Mesh

from rdjax.config import SIGNAL_STORES
from rdjax.data.batches import Batch, indices_in_rows, stack_members
from rdjax.data.positions import Offsets
from rdjax.data.shapes import round_up
from rdjax.distillation.forward import Signals, signals_shardings
from rdjax.distillation.teacher import ComputeSignals
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import put, row_multiple, rows_sharding
from rdjax.parallel.processes import max_over_processes, to_host, true_everywhere
from rdjax.storage.files import allocate
from rdjax.storage.sums import describe_damage, write_sums

# The share of free memory that cached signals may take; the rest is for the step and for other programs.
DEVICE_SHARE, HOST_SHARE = 0.25, 0.5
MEMORY = pathlib.Path("/proc/meminfo")

PairNumbers = Sequence[Sequence[int]]  # the numbers of each member's pairs in one batch


class SignalSource(NamedTuple):
    """Provides the signals of a batch in two steps, so that a thread can do the first one ahead of time.

    Attributes:
      fetch: (pair numbers, their batch in host memory) -> what host memory has of their signals; numpy alone.
      put: (what was fetched, the batch on the mesh) -> the signals on the mesh.
    """

    fetch: Callable[[PairNumbers, Batch], Any]
    put: Callable[[Any, Batch], Signals]


class CachedSignals(NamedTuple):
    """Holds one member's signals: inputs of all blocks at aligned positions, final states at prediction positions."""

    inputs_QLD: np.ndarray
    final_PD: np.ndarray


class CacheIndices(NamedTuple):
    """Says which entries of a member's cache a batch needs; padding reads entry 0."""

    aligned_ABQ: np.ndarray
    predictions_ABP: np.ndarray


def abstract_signals(model: LanguageModel, batch: Batch) -> Signals:
    """Returns the shapes and shardings of a batch's signals."""
    *micro, B, P = batch.weight_BP.shape
    Q = batch.hidden_weight_BQ.shape[-1]
    dtype, D = model.base["embed_tokens"].dtype, model.config.width
    shardings = signals_shardings(model.mesh)
    return Signals(
        jax.ShapeDtypeStruct((*micro, model.config.layers, B, Q, D), dtype, sharding=shardings.inputs_LBQD),
        jax.ShapeDtypeStruct((*micro, B, P, D), dtype, sharding=shardings.final_BPD),
    )


def online_signals(compute_signals: ComputeSignals, mesh: Mesh) -> SignalSource:
    """Computes the signals of every batch anew."""
    # The signals are on the mesh already; this normalises their sharding, so that a one-device mesh does not recompile.
    shardings = signals_shardings(mesh)
    return SignalSource(
        lambda numbers, batch: None, lambda fetched, batch: jax.device_put(compute_signals(batch), shardings)
    )


def signal_bytes(model: LanguageModel, offsets_M: Sequence[Offsets]) -> int:
    """Counts the bytes of all members' signals."""
    states = sum(offsets.aligned[-1] * model.config.layers + offsets.predictions[-1] for offsets in offsets_M)
    return int(states) * model.config.width * model.base["embed_tokens"].dtype.itemsize


def choose_store(size: int, mesh: Mesh) -> str:
    """Chooses the fastest of `SIGNAL_STORES` that has room for `size` bytes in all processes.

    Devices divide the signals among them; each host has all of them.
    """
    device = jax.local_devices()[0]
    # A CPU device's memory is the host's.
    memory = (device.memory_stats() if device.platform != "cpu" else None) or {}
    devices = row_multiple(mesh) * DEVICE_SHARE * (memory.get("bytes_limit", 0) - memory.get("bytes_in_use", 0))
    host = HOST_SHARE * _free_host_memory()
    # Signals for devices are in host memory first, and there once more in the order of the devices.
    limits = min(devices, host / 2), host, math.inf
    return SIGNAL_STORES[max_over_processes(next(number for number, limit in enumerate(limits) if size < limit))]


def _free_host_memory() -> float:
    """Returns the bytes that programs can use without swapping; infinity where the system does not say."""
    if not MEMORY.exists():
        return math.inf
    return 1024 * int(re.search(r"^MemAvailable:\s*(\d+) kB", MEMORY.read_text(), re.MULTILINE)[1])


def signals_fingerprint(model: LanguageModel, teachers_M: Adapter, scale: float, texts: Any) -> str:
    """Hashes everything that the signals follow from: checkpoint, dtypes, the teachers' adapters, the pairs.

    Args:
      texts: the pairs' tokens and which of their positions are cached, as JSON.
    """
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(model.base)})
    digest = hashlib.sha256(json.dumps([model.fingerprint, dtypes, scale, texts]).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_host(teachers_M)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


def cached_signals(
    model: LanguageModel,
    offsets_M: Sequence[Offsets],
    computed: Iterable[tuple[Batch, Signals]],
    store: str,
    folder: pathlib.Path,
) -> SignalSource:
    """Computes the signals of every pair once and caches them.

    Args:
      offsets_M: of each member's pairs.
      computed: all pairs in order, in batches on the mesh with their signals; not iterated where the cache is on disk
        already.
      store: one of `SIGNAL_STORES`.
      folder: of a cache on disk; its name contains `signals_fingerprint`.
    """
    on_disk, complete = store == "disk", folder / "complete"
    exists = on_disk and true_everywhere(complete.exists() and not _damage(folder))
    if on_disk and not exists:
        folder.mkdir(parents=True, exist_ok=True)
        complete.unlink(missing_ok=True)

    def buffer(name: str, *shape: int) -> np.ndarray:
        shape, dtype = tuple(map(int, shape)), model.base["embed_tokens"].dtype
        if not on_disk:
            return np.empty(shape, dtype)
        if not exists:
            allocate(folder / name, dtype.itemsize * math.prod(shape))
        return np.memmap(folder / name, dtype, "r" if exists else "r+", shape=shape)

    L, D = model.config.layers, model.config.width
    cache_M = [
        CachedSignals(
            buffer(f"inputs-{member}", offsets.aligned[-1], L, D),
            buffer(f"final-{member}", offsets.predictions[-1], D),
        )
        for member, offsets in enumerate(offsets_M)
    ]
    if not exists:
        _fill(cache_M, computed)
        if on_disk:
            for array in jax.tree.leaves(cache_M):
                array.flush()
            write_sums(folder, sorted(path.name for path in folder.glob("*-*")))
            complete.touch()
    return (_device_source if store == "device" else _host_source)(model, cache_M, offsets_M)


def _damage(folder: pathlib.Path) -> bool:
    """Tells whether cached signals are not what was written; they are then computed again."""
    damage = describe_damage(folder)
    if damage:
        logging.warning("%s: damaged (%s); the signals are computed again", folder, damage)
    return bool(damage)


def _fill(cache_M: Sequence[CachedSignals], computed: Iterable[tuple[Batch, Signals]]) -> None:
    """Writes the signals of all batches into the cache, one after the other, without their padding."""
    filled_M = [[0, 0] for _ in cache_M]
    for batch, on_mesh in computed:
        signals, *weights = to_host((on_mesh, batch.hidden_weight_BQ, batch.weight_BP))
        inputs_MABQLD = np.moveaxis(signals.inputs_LBQD, 2, 4)
        for member, (cache, filled) in enumerate(zip(cache_M, filled_M, strict=True)):
            parts = zip(cache, (inputs_MABQLD, signals.final_BPD), weights, strict=True)
            for part, (array, whole, weight) in enumerate(parts):
                real = whole[member][weight[member] > 0]
                array[filled[part] : filled[part] + len(real)] = real
                filled[part] += len(real)


def _cache_indices(numbers: PairNumbers, offsets_M: Sequence[Offsets], batch: Batch) -> list[CacheIndices]:
    """Finds each member's entries for the numbered pairs, in the order of the batch."""
    A, B, Q = batch.hidden_weight_BQ.shape[1:]
    P = batch.weight_BP.shape[-1]
    return [
        CacheIndices(
            indices_in_rows(member, offsets.aligned, A * B, Q).reshape(A, B, Q),
            indices_in_rows(member, offsets.predictions, A * B, P).reshape(A, B, P),
        )
        for member, offsets in zip(numbers, offsets_M, strict=True)
    ]


def _host_source(model: LanguageModel, cache_M: Sequence[CachedSignals], offsets_M: Sequence[Offsets]) -> SignalSource:
    """Provides signals from a cache in host memory or on disk."""
    shardings = signals_shardings(model.mesh)

    def fetch(numbers: PairNumbers, batch: Batch) -> Signals:
        indices_M = _cache_indices(numbers, offsets_M, batch)
        return stack_members(
            Signals(np.moveaxis(cache.inputs_QLD[indices.aligned_ABQ], 3, 1), cache.final_PD[indices.predictions_ABP])
            for cache, indices in zip(cache_M, indices_M, strict=True)
        )

    return SignalSource(fetch, lambda fetched, batch: put(fetched, shardings))


def _device_source(
    model: LanguageModel, cache_M: Sequence[CachedSignals], offsets_M: Sequence[Offsets]
) -> SignalSource:
    """Provides signals from a cache that the devices divide among them."""

    def stack_padded(*arrays: np.ndarray) -> np.ndarray:
        """Stacks the members' arrays, padded to the longest and to what the devices can divide."""
        entries = round_up(max(map(len, arrays)), row_multiple(model.mesh))
        stacked = np.zeros((len(arrays), entries, *arrays[0].shape[1:]), arrays[0].dtype)
        for member, array in zip(stacked, arrays, strict=True):
            member[: len(array)] = array
        return stacked

    on_device = put(jax.tree.map(stack_padded, *cache_M), rows_sharding(model.mesh, leading=1))
    rows = rows_sharding(model.mesh, leading=2)
    gather = jax.jit(_gather, out_shardings=signals_shardings(model.mesh))

    def fetch(numbers: PairNumbers, batch: Batch) -> CacheIndices:
        return stack_members(_cache_indices(numbers, offsets_M, batch))

    return SignalSource(fetch, lambda fetched, batch: gather(on_device, put(fetched, rows)))


def _gather(cache_M: CachedSignals, indices_M: CacheIndices) -> Signals:
    """Gathers the signals [M, A, ...] of a batch from the cache."""

    def one(cache: CachedSignals, indices: CacheIndices) -> Signals:
        inputs_ABQLD = jnp.take(cache.inputs_QLD, indices.aligned_ABQ, axis=0)
        return Signals(jnp.moveaxis(inputs_ABQLD, 3, 1), jnp.take(cache.final_PD, indices.predictions_ABP, axis=0))

    return jax.vmap(one)(cache_M, indices_M)
