"""Signals that are kept, wherever, equal those that are asked for anew."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rdjax.config import SIGNAL_STORES
from rdjax.data.batches import as_update, collate
from rdjax.data.positions import position_offsets
from rdjax.data.prefix import NO_PREFIX
from rdjax.data.shapes import batch_shape
from rdjax.distillation import signals as signals_module
from rdjax.distillation.signals import (
    cached_signals,
    choose_store,
    online_signals,
    signal_bytes,
    signals_fingerprint,
)
from rdjax.distillation.teacher import make_teacher
from rdjax.parallel.mesh import make_mesh
from tests.distillation.case import PUBLISHED, SHARED, SPEC, assert_close, make_case, random_adapter, random_pairs

SEEDS, COUNT, BATCH = (1, 2), 5, 2
MESH = make_mesh(base.get_config().mesh)


def longer(pair):
    return dataclasses.replace(pair, response_ids=(*pair.response_ids, 7, 8))


class Problem:
    """Two members with five pairs each."""

    def __init__(self, slots, dtype=jnp.float32):
        case = make_case(dtype=dtype)
        self.model = types.SimpleNamespace(
            graph=case.graph, base=case.base, config=case.config, mesh=MESH, fingerprint="model"
        )
        self.slots = slots
        # The second member's are as many and longer.
        self.pairs = [random_pairs(COUNT), [longer(pair) for pair in random_pairs(COUNT, seed=2)]]
        self.shape = batch_shape(self.pairs, 4, slots, NO_PREFIX)
        adapters = [random_adapter(case.config, seed) for seed in SEEDS]
        self.teachers_M = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
        self.ask = make_teacher(self.model, self.teachers_M, SPEC.scale, None)
        self.offsets_M = [position_offsets(own, slots) for own in self.pairs]
        self.asked = []

    def batch(self, numbers):
        """Two micro-batches of two rows."""
        made = [
            as_update(collate([own[number] for number in chosen], 4, self.shape, self.slots, eos=257), 2)
            for own, chosen in zip(self.pairs, numbers, strict=True)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *made)

    def cached(self, store, folder):
        in_order = [[list(range(start, min(start + BATCH, COUNT)))] * 2 for start in range(0, COUNT, BATCH)]

        def ask():
            for numbers in in_order:
                batch = self.batch(numbers)
                self.asked.append(batch)
                yield batch, self.ask(batch)

        return cached_signals(self.model, self.offsets_M, ask(), store, folder)


@pytest.mark.parametrize("store", SIGNAL_STORES)
@pytest.mark.parametrize(("slots", "dtype"), [(SHARED, "float32"), (PUBLISHED, "float32"), (SHARED, "bfloat16")])
def test_cached_signals_equal_online_ones(slots, dtype, store, tmp_path):
    problem = Problem(slots, dtype)
    cached = problem.cached(store, tmp_path / "kept")
    assert len(problem.asked) == 3, "every pair once"
    tolerance = 1e-5 if dtype == "float32" else 0.05  # of other shapes, and so of other roundings
    numbers = [[4, 0, 2], [1, 3, 3]]
    batch = problem.batch(numbers)
    online = online_signals(problem.ask, problem.model.mesh)
    ours, theirs = (source.put(source.fetch(numbers, batch), batch) for source in (cached, online))
    # Padding shows whatever there is: nobody reads it.
    real = (batch.hidden_weight_BQ > 0)[:, :, None, :, :, None], (batch.weight_BP > 0)[..., None]
    assert_close(*((side.inputs_LBQD * real[0], side.final_BPD * real[1]) for side in (ours, theirs)), tolerance)
    assert all(mask.any() and not mask.all() for mask in real)


def test_signals_on_disk_are_made_once(tmp_path):
    problem = Problem(SHARED)
    numbers = [[0, 1], [2, 3]]
    sources = [problem.cached("disk", tmp_path / "kept") for _ in range(2)]
    first, second = (source.fetch(numbers, problem.batch(numbers)) for source in sources)
    assert len(problem.asked) == 3
    jax.tree.map(np.testing.assert_array_equal, first, second)
    (tmp_path / "kept" / "complete").unlink()  # as after a kill
    problem.cached("disk", tmp_path / "kept")
    assert len(problem.asked) == 6


def test_the_fingerprint_follows_from_all_that_the_signals_follow_from():
    problem = Problem(SHARED)
    model, teachers = problem.model, problem.teachers_M
    texts = [[1, 2], [3]]
    same = signals_fingerprint(model, teachers, 2.0, texts)
    assert same == signals_fingerprint(model, jax.tree.map(jnp.copy, teachers), 2.0, texts)
    other = jax.tree.map(lambda leaf: leaf.at[0, 0, 0, 0].add(1e-3), teachers)
    changed = [
        signals_fingerprint(model, other, 2.0, texts),
        signals_fingerprint(model, teachers, 1.0, texts),
        signals_fingerprint(model, teachers, 2.0, [[1, 2], [4]]),
        signals_fingerprint(types.SimpleNamespace(**(vars(model) | {"fingerprint": "another"})), teachers, 2.0, texts),
        signals_fingerprint(Problem(SHARED, jnp.bfloat16).model, teachers, 2.0, texts),
    ]
    assert len({same, *changed}) == 6


def test_the_store_follows_from_the_size(monkeypatch, tmp_path):
    problem = Problem(SHARED)
    slots = sum(int(each.aligned[-1]) * 2 + int(each.predictions[-1]) for each in problem.offsets_M)
    assert signal_bytes(problem.model, problem.offsets_M) == slots * 32 * 4
    told = tmp_path / "meminfo"
    told.write_text("MemFree: 1 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(signals_module, "MEMORY", told)
    assert choose_store(2_000_000, MESH) == "host"
    assert choose_store(2_100_000, MESH) == "disk"
    monkeypatch.setattr(signals_module, "MEMORY", tmp_path / "none")
    assert choose_store(10**15, MESH) == "host"

    def gpu(limit):
        stats = {"bytes_limit": limit, "bytes_in_use": 1000}
        return [types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)]

    monkeypatch.setattr(signals_module.jax, "local_devices", lambda: gpu(9000))
    monkeypatch.setattr(signals_module, "MEMORY", told)
    assert choose_store(1999, MESH) == "device"
    assert choose_store(2000, MESH) == "host"
