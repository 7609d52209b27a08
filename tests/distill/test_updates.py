"""Updates: their shapes, what they leave out, and how they suit a mesh."""

import dataclasses
import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rdjax.distill.stage import _ahead, _compiling
from rdjax.distill.step import Objective
from rdjax.distill.updates import Updates, in_turn
from rdjax.models.sharding import param_shardings
from rdjax.models.weights import abstract_params
from rdjax.parallel.mesh import make_mesh, replicated
from tests.distill.case import DISTILL, OPTIONS, OURS, make_case, random_adapter, random_pairs, ruled_pairs


def make(
    pairs,
    batch_size=4,
    objective=DISTILL,
    mesh=None,
    folder=pathlib.Path("unused"),
    epochs=1,
    **train,
) -> Updates:
    """Updates of one member that are taken in order, so many times."""
    config = base.get_config()
    config.mesh.update(mesh or {})
    config.train.update({"batch_size": batch_size, **train})
    case, mesh = make_case(), make_mesh(config.mesh)
    graph, abstract = abstract_params(case.config, jnp.float32, mesh=mesh)
    model = types.SimpleNamespace(
        graph=graph,
        base=jax.device_put(case.base, param_shardings(mesh, abstract)),
        config=case.config,
        mesh=mesh,
        eos_ids=(257,),
    )
    teachers_M = jax.tree.map(lambda leaf: leaf[None], random_adapter(case.config))
    teachers_M = jax.device_put(teachers_M, replicated(mesh))
    numbers = in_turn(len(pairs), batch_size, 1) * epochs
    updates = Updates.make([pairs], numbers, OURS, objective, model, config.train)
    return updates.with_signals(teachers_M, OPTIONS.scale, config.train, folder)


def test_in_turn_takes_every_pair_once():
    assert in_turn(5, 2, 3) == [[[0, 1]] * 3, [[2, 3]] * 3, [[4]] * 3]


def test_both_sides_leave_out_what_all_share():
    updates = make(ruled_pairs())
    assert updates.prefixes == (16, 16)
    assert updates.trained_prefix_C.tolist() == list(range(130, 146))
    tuned = make(ruled_pairs(), objective=Objective("tune_with_rule"))
    assert tuned.trained_prefix_C.tolist() == list(range(100, 116))


@pytest.mark.parametrize(
    ("mesh", "given", "rows", "accumulation"),
    [({}, 1, 1, 1), ({}, 4, 1, 4), ({"data": 2}, 4, 2, 2), ({"data": 4}, 4, 4, 1), ({"data": 2, "fsdp": 4}, 4, 8, 1)],
)
def test_a_mesh_with_more_rows_accumulates_less(mesh, given, rows, accumulation):
    """No micro-batch is padding alone."""
    updates = make(random_pairs(), mesh=mesh, accumulation=given, teacher_signals="online")
    batch = updates.batch([[0, 1, 2, 3]])
    assert batch.weight_BP.shape[:3] == (1, accumulation, rows)
    assert (np.asarray(batch.weight_BP).sum(axis=(2, 3)) > 0).all()


def test_updates_of_like_size_share_a_shape():
    """Two programs serve short and long updates; what each holds is its own pairs."""
    short, long = random_pairs(8), [dataclasses.replace(p, response_ids=tuple(range(60))) for p in random_pairs(8)]
    assert len(make(short + long, teacher_signals="online").shapes) == 1, "so few are not worth a program more"
    updates = make(short + long, teacher_signals="online", epochs=50)
    assert len(updates.shapes) == 2
    for numbers, shape in (([[0, 1, 2, 3]], updates.shapes[0]), ([[8, 9, 10, 11]], updates.shapes[1])):
        batch = updates.batch(numbers)
        assert batch.student.tokens_BT.shape[-1] == shape.student.tokens
        assert batch.weight_BP.shape[-1] == shape.predict
    assert updates.shapes[0].student.tokens < updates.shapes[1].student.tokens / 3


@pytest.mark.parametrize("place", ["online", "device", "host", "disk"])
def test_signals_are_the_same_wherever_they_come_from(place, tmp_path):
    """All but the online ones are made once, with other batches than those that are asked for."""
    pairs = ruled_pairs() + random_pairs(3, seed=4)
    expected = make(pairs, teacher_signals="online")
    updates = make(pairs, teacher_signals=place, folder=tmp_path)
    numbers = [[5, 0, 3]]
    ours, theirs = (made.place(made.fetch(numbers))[1] for made in (updates, expected))
    batch = updates.fetch(numbers).batch
    aligned, predict = (batch.hidden_weight_BQ > 0)[:, :, None, :, :, None], (batch.weight_BP > 0)[..., None]
    np.testing.assert_allclose(ours.inputs_LBQD * aligned, theirs.inputs_LBQD * aligned, atol=1e-5)
    np.testing.assert_allclose(ours.final_BPD * predict, theirs.final_BPD * predict, atol=1e-5)
    assert float(jnp.abs(ours.final_BPD * predict).sum()) > 1
    assert len([*tmp_path.glob("*/process-0/complete")]) == (place == "disk")


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("place", ["online", "device", "host"])
def test_stand_ins_are_like_what_comes(place, mesh, tmp_path):
    """In shape, type and place: or what is compiled for them would be compiled once more when it comes."""
    pairs = random_pairs(8) + [dataclasses.replace(p, response_ids=tuple(range(60))) for p in random_pairs(8)]
    updates = make(pairs, mesh=mesh, teacher_signals=place, epochs=50)
    assert len(updates.shapes) == 2

    def kind(leaf):
        return leaf.shape, leaf.dtype, leaf.sharding

    for numbers, abstract_like in zip(([[0, 1, 2, 3]], [[8, 9, 10, 11]]), updates.abstract_updates(), strict=True):
        came = updates.place(updates.fetch(numbers))
        assert jax.tree.map(kind, came) == jax.tree.map(kind, abstract_like)


def test_tuning_stands_in_no_signals():
    assert [
        signals for _, signals in make(random_pairs(), objective=Objective("tune_with_rule")).abstract_updates()
    ] == [None]


def test_things_made_ahead_come_in_order_and_their_errors_too():
    def made():
        yield from "ab"
        raise ValueError("spilt")

    ahead = _ahead(made())
    assert [next(ahead), next(ahead)] == ["a", "b"]
    with pytest.raises(ValueError, match="spilt"):
        next(ahead)


@pytest.mark.parametrize("broken", ["program", "body"])
def test_errors_of_compiling_and_beside_it_are_told(broken):
    """The one beside it first; and a program that cannot be compiled is no silent failure."""

    class TooLarge:
        def __call__(self):
            pass

        def lower(self):
            raise RuntimeError("too large")

    program = functools.partial(TooLarge())
    told = pytest.raises(RuntimeError, match="too large") if broken == "program" else pytest.raises(KeyError)
    with told, _compiling([(program, ())], types.SimpleNamespace(mesh=None)):
        if broken == "body":
            raise KeyError("beside it")
