"""Checks updates: their shapes and prefixes, how they suit a mesh, and that programs are compiled before they exist."""

import dataclasses
import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rdjax.data import shapes
from rdjax.data.groups import PairGroup, make_group
from rdjax.data.pairs import keep_rule
from rdjax.data.positions import count_positions
from rdjax.distillation.objective import TUNE_WITH_RULE
from rdjax.distillation.programs import Program, compiling
from rdjax.distillation.updates import (
    GroupLoader,
    abstract_updates,
    compute_in_parts,
    fetch_updates,
    make_loader,
    parts_by_rule,
    plan_epoch,
    put_update,
    sequential_batches,
    with_signals,
)
from rdjax.models.sharding import param_shardings
from rdjax.models.weights import abstract_params
from rdjax.parallel.mesh import make_mesh, replicated
from tests.distillation.case import (
    DISTILL,
    GREETING,
    OURS,
    RULE,
    SPEC,
    make_case,
    random_adapter,
    random_pairs,
    ruled_pairs,
)


def make_model(config):
    """Returns what stands for a `LanguageModel` on the config's mesh."""
    case, mesh = make_case(), make_mesh(config.mesh)
    graph, abstract = abstract_params(case.config, jnp.float32, mesh=mesh)
    weights = jax.device_put(case.base, param_shardings(mesh, abstract))
    return types.SimpleNamespace(
        graph=graph, base=weights, config=case.config, mesh=mesh, eos_ids=(257,), fingerprint="tiny"
    )


def make(
    pairs, batch_size=4, objective=DISTILL, mesh=None, folder=pathlib.Path("unused"), epochs=1, **train
) -> GroupLoader:
    """Returns the loader of one member's pairs, which are taken in order `epochs` times."""
    config = base.get_config()
    config.mesh.update(mesh or {})
    config.train.update({"batch_size": batch_size, **train})
    model = make_model(config)
    teachers_M = jax.tree.map(lambda leaf: leaf[None], random_adapter(model.config))
    teachers_M = jax.device_put(teachers_M, replicated(model.mesh))
    batches = sequential_batches(len(pairs), batch_size, 1) * epochs
    loader = make_loader([make_group(pairs, OURS)], batches, OURS, objective, model, config.train)
    return with_signals(loader, teachers_M, SPEC.scale, config.train, folder, {})


def groups_of(*counts):
    """Returns groups of so many pairs."""
    pair = random_pairs()[0]
    return [PairGroup([pair] * count) for count in counts]


def test_sequential_batches_take_every_pair_once():
    assert sequential_batches(5, 2, 3) == [[[0, 1]] * 3, [[2, 3]] * 3, [[4]] * 3]


def test_an_epoch_reads_the_largest_group_once_and_starts_over_in_the_others():
    groups = groups_of(7, 3)
    updates = plan_epoch(groups, seeds=[1, 2], epoch=1, batch_size=2)
    assert len(updates) == 4
    for member in range(2):
        first, second = ([number for update in updates for number in update[group][member]] for group in range(2))
        assert sorted(first) == list(range(7))
        assert sorted(second[:3]) == sorted(second[3:6]) == [0, 1, 2]
    assert updates != plan_epoch(groups, seeds=[1, 2], epoch=2, batch_size=2)
    assert updates == plan_epoch(groups, seeds=[1, 2], epoch=1, batch_size=2)


def test_a_group_with_a_share_of_the_batch_does_not_lengthen_the_epoch():
    whole, part = groups_of(8, 8)
    updates = plan_epoch([whole, dataclasses.replace(part, batch_share=0.25)], seeds=[1], epoch=1, batch_size=4)
    assert [[len(own) for (own,) in update] for update in updates] == [[4, 1], [4, 1]]
    least = plan_epoch([whole, dataclasses.replace(part, batch_share=0.25)], seeds=[1], epoch=1, batch_size=2)
    assert [len(own) for _, (own,) in least] == [1, 1, 1, 1]


def test_groups_whose_teachers_read_the_same_share_their_signals(capsys):
    """As with the rule in the student's prompt too: the teacher reads every pair once."""
    config, pairs = base.get_config(), ruled_pairs()
    model, batches = make_model(config), sequential_batches(len(pairs), 4, 1)
    teachers_M = jax.device_put(
        jax.tree.map(lambda leaf: leaf[None], random_adapter(model.config)), replicated(model.mesh)
    )

    def load(pairs, known):
        loader = make_loader([make_group(pairs, OURS)], batches, OURS, DISTILL, model, config.train)
        return with_signals(loader, teachers_M, SPEC.scale, config.train, pathlib.Path("unused"), known)

    known = {}
    loaders = [load(pairs, known), load([keep_rule(pair) for pair in pairs], known)]
    assert capsys.readouterr().out.count("teacher signals of") == len(known) == 1
    loaders.append(load([keep_rule(pair) for pair in pairs], {}))
    _, shared, alone = (loader.put(loader.fetch(batches[0])) for loader in loaders)
    jax.tree.map(np.testing.assert_array_equal, shared, alone)
    load([dataclasses.replace(pair, response_ids=pair.response_ids[:1]) for pair in pairs], known)
    assert len(known) == 2


def test_both_sides_leave_out_what_all_prompts_share():
    loader = make(ruled_pairs())
    assert (loader.shapes[0].teacher.prefix, loader.shapes[0].student.prefix) == (16, 16)
    assert loader.trained_prefix_MC.tolist() == [list(GREETING[:16])]
    assert make(ruled_pairs(), objective=TUNE_WITH_RULE).trained_prefix_MC.tolist() == [list(RULE[:16])]
    assert make(random_pairs()).trained_prefix_MC is None


def test_members_keep_prefixes_of_their_own():
    """As long as the shortest one."""
    config, batches = base.get_config(), sequential_batches(4, 4, 2)
    other = [
        dataclasses.replace(pair, prompts=dataclasses.replace(pair.prompts, student_ids=(7,) * 30 + (number, 8, 9)))
        for number, pair in enumerate(random_pairs())
    ]
    groups = [make_group(ruled_pairs(), OURS), make_group(other, OURS)]
    loader = make_loader(groups, batches, OURS, DISTILL, make_model(config), config.train)
    assert loader.trained_prefix_MC.tolist() == [list(GREETING[:16]), [7] * 16]
    assert loader.prefix_MC("teacher") is None, "the other member's teacher prompts share nothing"


@pytest.mark.parametrize(
    ("mesh", "asked", "rows", "accumulation"),
    [({}, 1, 1, 1), ({}, 4, 1, 4), ({"data": 2}, 4, 2, 2), ({"data": 4}, 4, 4, 1), ({"data": 2, "fsdp": 4}, 4, 8, 1)],
)
def test_a_mesh_with_more_rows_accumulates_less(mesh, asked, rows, accumulation):
    """No micro-batch is padding alone."""
    batch = make(random_pairs(), mesh=mesh, accumulation=asked, teacher_signals="online").mesh_batch([[0, 1, 2, 3]])
    assert batch.weight_BP.shape[:3] == (1, accumulation, rows)
    assert (np.asarray(batch.weight_BP).sum(axis=(2, 3)) > 0).all()


def short_and_long_pairs():
    return random_pairs(8) + [dataclasses.replace(pair, response_ids=tuple(range(60))) for pair in random_pairs(8)]


def test_updates_of_about_the_same_size_share_a_shape():
    """Two programs serve short and long updates; each update holds its own pairs."""
    pairs = short_and_long_pairs()
    assert len(make(pairs, teacher_signals="online").shapes) == 1, "so few updates are not worth another program"
    loader = make(pairs, teacher_signals="online", epochs=50)
    assert len(loader.shapes) == 2
    for numbers, shape in (([[0, 1, 2, 3]], loader.shapes[0]), ([[8, 9, 10, 11]], loader.shapes[1])):
        batch = loader.mesh_batch(numbers)
        assert batch.student.tokens_BT.shape[-1] == shape.student.tokens
        assert batch.weight_BP.shape[-1] == shape.predictions
    assert loader.shapes[0].student.tokens < loader.shapes[1].student.tokens / 3


def pairs_of_two_rules():
    """Two rules in turn, the second longer; all prompts begin alike, by less than is worth reading once."""
    rules = {"first": tuple(range(10, 50)), "second": tuple(range(60, 120))}
    pairs = []
    for number, pair in enumerate(random_pairs(6)):
        name = ("first", "second")[number % 2]
        ids = (1, 2, 3, *rules[name], *pair.prompts.teacher_ids)
        pairs.append(dataclasses.replace(pair, prompts=dataclasses.replace(pair.prompts, teacher_ids=ids, rule=name)))
    return pairs


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_each_of_several_rules_is_read_once(place, tmp_path):
    """Rows of the teacher lack the beginning that the pairs of a rule share; the signals are the same."""
    pairs = pairs_of_two_rules()
    expected, loader = make(pairs, teacher_signals="online"), make(pairs, teacher_signals=place, folder=tmp_path)
    parts = parts_by_rule(loader)
    assert [numbers for numbers, _ in parts] == [[0, 2, 4], [1, 3, 5]]
    assert [part.prefix_length("teacher") for _, part in parts] == [40, 40]
    assert [part.prefixes_M[0].teacher[3] for _, part in parts] == [10, 60]
    for numbers in ([[4, 1, 0, 5]], [[3, 2]]):
        ours, theirs = (each.put(each.fetch(numbers)).signals for each in (loader, expected))
        batch = loader.host_batch(numbers)
        for left, right, weight in zip(ours, theirs, (batch.hidden_weight_BQ, batch.weight_BP), strict=True):
            left, right = (np.moveaxis(each, 2, 4) if each.ndim == 6 else np.asarray(each) for each in (left, right))
            np.testing.assert_allclose(left[weight > 0], right[weight > 0], atol=1e-5)


def test_the_teacher_reads_each_rule_in_rows_of_its_length(monkeypatch):
    monkeypatch.setattr(shapes, "COMPILING_TAKES", 0)
    loader = make(pairs_of_two_rules(), teacher_signals="online")
    parts = [part for _, part in parts_by_rule(loader)]
    teachers_M = jax.device_put(
        jax.tree.map(lambda leaf: leaf[None], random_adapter(loader.model.config)), replicated(loader.model.mesh)
    )
    computed = compute_in_parts(parts, teachers_M, SPEC.scale, batch_size=3)
    first, second = (batch.teacher.tokens_BT.shape[-1] for batch, _ in computed)
    assert first < second, "the second rule is 20 tokens longer, the students' prompts are not"


def test_one_rule_and_rules_that_members_divide_differently_stay_in_one_part():
    assert len(parts_by_rule(make(ruled_pairs(), teacher_signals="online"))) == 1
    pairs = pairs_of_two_rules()
    loader = make(pairs, teacher_signals="online")
    members = dataclasses.replace(loader, pairs_M=[pairs, pairs[1:] + pairs[:1]], prefixes_M=loader.prefixes_M * 2)
    assert len(parts_by_rule(members)) == 2  # in turn, whichever comes first
    single = [dataclasses.replace(p, prompts=dataclasses.replace(p.prompts, rule=str(i))) for i, p in enumerate(pairs)]
    assert len(parts_by_rule(dataclasses.replace(loader, pairs_M=[single]))) == 1
    uneven = dataclasses.replace(loader, pairs_M=[pairs, sorted(pairs, key=lambda pair: pair.prompts.rule)])
    assert [numbers for numbers, _ in parts_by_rule(uneven)] == [list(range(6))]


@pytest.mark.parametrize("place", ["online", "device", "host", "disk"])
def test_signals_are_the_same_wherever_they_come_from(place, tmp_path):
    """All but the online ones are computed once, in other batches than those that are loaded."""
    pairs = ruled_pairs() + random_pairs(3, seed=4)
    expected = make(pairs, teacher_signals="online")
    loader = make(pairs, teacher_signals=place, folder=tmp_path)
    numbers = [[5, 0, 3]]
    ours, theirs = (each.put(each.fetch(numbers)).signals for each in (loader, expected))
    batch = loader.host_batch(numbers)
    aligned, predict = (batch.hidden_weight_BQ > 0)[:, :, None, :, :, None], (batch.weight_BP > 0)[..., None]
    np.testing.assert_allclose(ours.inputs_LBQD * aligned, theirs.inputs_LBQD * aligned, atol=1e-5)
    np.testing.assert_allclose(ours.final_BPD * predict, theirs.final_BPD * predict, atol=1e-5)
    assert float(jnp.abs(ours.final_BPD * predict).sum()) > 1
    assert len([*tmp_path.glob("*/process-0/complete")]) == (place == "disk")


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("place", ["online", "device", "host"])
def test_abstract_updates_have_the_shapes_and_shardings_of_real_ones(place, mesh):
    """Otherwise what was compiled for them would be compiled once more."""
    loader = make(short_and_long_pairs(), mesh=mesh, teacher_signals=place, epochs=50)
    assert len(loader.shapes) == 2

    def description(leaf):
        return leaf.shape, leaf.dtype, leaf.sharding

    batches = [[[0, 1, 2, 3]], [[8, 9, 10, 11]]]
    abstract = abstract_updates([loader], [[numbers] for numbers in batches * 3])
    assert len(abstract) == 2
    for numbers, expected in zip(batches, abstract, strict=True):
        update = put_update([loader], [loader.fetch(numbers)])
        assert jax.tree.map(description, update) == jax.tree.map(description, expected)


def test_tuning_has_no_signals():
    loader = make(random_pairs(), objective=TUNE_WITH_RULE)
    assert loader.abstract([[0, 1, 2, 3]]).signals is None
    assert loader.put(loader.fetch([[0, 1, 2, 3]])).signals is None


def test_updates_are_fetched_ahead_in_order_and_errors_are_raised():
    class Counting:
        def fetch(self, number):
            if number == 3:
                raise ValueError("no such pair")
            return number

    ahead = fetch_updates([Counting()], [[1], [2], [3]])
    assert [next(ahead), next(ahead)] == [[1], [2]]
    with pytest.raises(ValueError, match="no such pair"):
        next(ahead)
    assert list(fetch_updates([Counting()], [])) == []


@pytest.mark.parametrize("broken", ["program", "body"])
def test_errors_of_compiling_and_of_the_work_meanwhile_are_raised(broken):
    """The error of the work comes first; a program that cannot be compiled is no silent failure."""

    class TooLarge:
        def __call__(self):
            raise AssertionError("never called")

        def lower(self):
            raise RuntimeError("too large")

    program = Program(functools.partial(TooLarge()), ())
    expected = pytest.raises(RuntimeError, match="too large") if broken == "program" else pytest.raises(KeyError)
    with expected, compiling([program], None):
        if broken == "body":
            raise KeyError("meanwhile")


def test_group_weights_multiply_the_loss_weights():
    config = base.get_config()
    group = PairGroup(random_pairs(), weight=0.25)
    loader = make_loader([group], [[[0, 1, 2, 3]]], OURS, TUNE_WITH_RULE, make_model(config), config.train)
    assert loader.host_batch([[0, 1, 2, 3]]).weight_BP.sum() == pytest.approx(0.25)
    predictions, aligned = loader.total_weights([[0, 1, 2, 3]])[0]
    assert predictions == sum(len(pair.response_ids) + 1 for pair in group.pairs)
    assert aligned == sum(count_positions(pair, OURS)[1] for pair in group.pairs)
