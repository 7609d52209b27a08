"""Checks that a stage on two groups of pairs gives the weighted sum of what each group gives alone.

The groups have other rules, other prefixes, other lengths; the second one's teacher reads no rule.
"""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from rdjax.data.groups import make_group
from rdjax.data.pairs import Prompts
from rdjax.distillation.job import Member, Stage, load_signals, make_job
from rdjax.distillation.progress import stack_adapters
from rdjax.distillation.stage import run_stage, validate
from rdjax.distillation.step import evaluate_loss, init_state, loss_and_gradient, train_step
from rdjax.distillation.updates import make_loader, put_update, with_signals
from rdjax.models.sharding import param_shardings
from rdjax.models.weights import abstract_params
from rdjax.parallel.mesh import make_mesh, replicated
from tests import tiny
from tests.distillation.case import (
    DISTILL,
    GREETING,
    SHARED,
    SPEC,
    TUNE_WITHOUT_RULE,
    assert_close,
    distillation,
    make_case,
    random_adapter,
    random_pairs,
    ruled_pairs,
    settings_of,
)

WEIGHTS = 1.0, 0.3
OFF_RULE = distillation(hidden_weight=0.5)  # the second group's, where the first has DISTILL


def plain_pairs(seed: int):
    """Pairs whose teacher reads the student's prompt: no rule."""
    pairs = []
    for pair in random_pairs(3, seed):
        ids = GREETING + pair.prompts.student_ids
        pairs.append(dataclasses.replace(pair, prompts=Prompts("", "", ids, ids, len(ids), "plain")))
    return pairs


def groups_of(member: int):
    """A member's two groups; the first member's rule differs from the second one's."""
    ruled = ruled_pairs()
    if member:
        ruled = [
            dataclasses.replace(
                pair, prompts=dataclasses.replace(pair.prompts, teacher_ids=(99,) * 21 + pair.prompts.teacher_ids[21:])
            )
            for pair in ruled
        ]
    return [make_group(ruled, SHARED, WEIGHTS[0]), make_group(plain_pairs(seed=10 + member), SHARED, WEIGHTS[1])]


class Problem:
    """Two groups of one member or of two, on a mesh, with signals from a place."""

    def __init__(self, members: int, place: str, mesh: dict, folder, objective=DISTILL, fields=tiny.LLAMA2):
        self.config = base.get_config()
        self.config.mesh.update(mesh)
        self.config.train.update({"batch_size": 2, "teacher_signals": place})
        case, self.mesh = make_case(fields), make_mesh(self.config.mesh)
        graph, abstract = abstract_params(case.config, jnp.float32, mesh=self.mesh)
        weights = jax.device_put(case.base, param_shardings(self.mesh, abstract))
        self.model = types.SimpleNamespace(
            graph=graph, base=weights, config=case.config, mesh=self.mesh, eos_ids=(257,), fingerprint="tiny"
        )
        self.objectives = (objective, OFF_RULE if objective is DISTILL else objective)
        self.settings = settings_of(case._replace(graph=graph), objective, objectives=self.objectives)
        self.members = members
        self.adapters_M = self.on_mesh([random_adapter(case.config, 1 + number) for number in range(members)])
        teachers_M = self.on_mesh([random_adapter(case.config, 5 + number) for number in range(members)])
        self.numbers = [[[2, 0]] * members, [[1, 2]] * members]
        self.loaders = []
        for groups_M, numbers in zip(zip(*map(groups_of, range(members)), strict=True), self.numbers, strict=True):
            loader = make_loader(groups_M, [numbers], SHARED, objective, self.model, self.config.train)
            self.loaders.append(with_signals(loader, teachers_M, SPEC.scale, self.config.train, folder, {}))
        fetched = [loader.fetch(own) for loader, own in zip(self.loaders, self.numbers, strict=True)]
        self.update = put_update(self.loaders, fetched)

    def on_mesh(self, adapters):
        return jax.device_put(jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters), replicated(self.mesh))

    def compute(self, update, first: int = 0):
        """Loss, terms and gradient of every member, of groups from number `first` on."""
        settings = dataclasses.replace(self.settings, objectives=self.objectives[first:])
        compute = jax.vmap(lambda adapter, update: loss_and_gradient(adapter, self.model.base, update, None, settings))
        return jax.device_get(jax.jit(compute)(self.adapters_M, update))


def with_weight(problem: Problem, number: int, weight: float):
    """Returns one group's share of the update alone, as if its weight were `weight`."""
    group = problem.update[number]
    factor = weight / WEIGHTS[number]
    batch = group.batch._replace(
        weight_BP=group.batch.weight_BP * factor, hidden_weight_BQ=group.batch.hidden_weight_BQ * factor
    )
    return (group._replace(batch=batch),)


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["1 device", "8 devices"])
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("place", ["online", "host", "device", "disk"])
def test_two_groups_give_the_weighted_sum_of_each_alone(place, members, mesh, tmp_path):
    problem = Problem(members, place, mesh, tmp_path)
    together = problem.compute(problem.update)
    alone = [problem.compute(with_weight(problem, number, 1.0), number) for number in range(2)]
    expected = jax.tree.map(lambda one, other: WEIGHTS[0] * one + WEIGHTS[1] * other, *alone)
    assert_close(together, expected, 1e-5)
    losses = [np.asarray(each[0][0]) for each in alone]
    assert (np.abs(losses[0] - losses[1]) > 1e-3).all(), "the groups differ"
    evaluated = evaluate_loss(problem.adapters_M, problem.model.base, problem.update, settings=problem.settings)
    np.testing.assert_allclose(evaluated, together[0][0], rtol=1e-5)


def test_cached_signals_of_groups_equal_online_ones(tmp_path):
    online, cached = (Problem(2, place, {}, tmp_path) for place in ("online", "host"))
    assert_close(cached.compute(cached.update), online.compute(online.update), 1e-5)


def test_a_step_on_two_groups_is_one_with_the_summed_gradient(tmp_path):
    problem = Problem(2, "host", {}, tmp_path)
    optimizer = optax.sgd(0.1)
    state = init_state(problem.adapters_M, optimizer)
    seeds_M = jnp.arange(2, dtype=jnp.uint32)
    gradient = problem.compute(problem.update)[1]
    expected = jax.tree.map(lambda leaf, g: leaf - 0.1 * g, problem.adapters_M, gradient)
    state, metrics = train_step(
        state, problem.model.base, problem.update, seeds_M, settings=problem.settings, optimizer=optimizer
    )
    assert_close(state.adapter, expected, 1e-5)
    assert set(metrics) == {"loss", "logit_loss", "hidden_loss", "gradient_norm"}


def test_groups_draw_dropout_masks_of_their_own(tmp_path):
    """The same pairs twice, as two groups of half the weight, are not the same as one group under dropout."""
    problem = Problem(1, "host", {}, tmp_path)
    settings = dataclasses.replace(problem.settings, objectives=(DISTILL, DISTILL), dropout=0.5)
    adapter, update = jax.tree.map(lambda leaf: leaf[0], (problem.adapters_M, problem.update[:1]))
    half = update[0]._replace(batch=update[0].batch._replace(weight_BP=update[0].batch.weight_BP / 2))
    compute = jax.jit(
        lambda update, key, settings: loss_and_gradient(adapter, problem.model.base, update, key, settings)[0][0],
        static_argnums=2,
    )
    key = jax.random.key(0)
    first, twice = compute((half,), key, settings), compute((half, half), key, settings)
    assert abs(float(twice) - 2 * float(first)) > 1e-4
    assert float(compute((half, half), None, settings)) == pytest.approx(2 * float(compute((half,), None, settings)))


class Log:
    """Keeps what a stage logs."""

    path = pathlib.Path("unused")

    def __init__(self):
        self.lines = []

    def truncate(self, stage, after_step):
        pass

    def write(self, stage, step, scalars):
        self.lines.append(scalars)


def run(folder, weights, groups=2, updates=3):
    """Runs a stage and returns the adapter and the metrics of its last epoch."""
    problem = Problem(1, "host", {}, folder)
    config = problem.config
    config.optimizer.update({"learning_rate": 1e-2, "warmup_steps": 0})
    config.train.update({"batch_size": 4, "epochs": updates, "valid_every": 1})
    pairs = [dataclasses.replace(group, weight=weight) for group, weight in zip(groups_of(0), weights, strict=True)]
    log = Log()
    adapter = random_adapter(problem.model.config)
    teachers = [random_adapter(problem.model.config, 7)] * groups
    member = Member(0, adapter, teachers, pairs[:groups], pairs[0], log)
    stage = Stage("student", (DISTILL,) * groups, SHARED, TUNE_WITHOUT_RULE, SHARED, SPEC.scale, 0.0, "none")
    (trained,) = run_stage(stage, problem.model, [member], config, folder / "stage")
    return jax.device_get(trained.adapter), log.lines


def test_the_validation_loss_does_not_depend_on_the_batches(tmp_path):
    """The pairs have prompts and responses of many lengths, and hidden states of both are compared."""
    problem, found = Problem(1, "host", {}, tmp_path), []
    problem.config.train.update({"epochs": 1, "valid_every": 1})
    problem.config.optimizer.learning_rate = 1e-3
    adapter, (group, _) = random_adapter(problem.model.config), groups_of(0)
    member = Member(0, adapter, [random_adapter(problem.model.config, 7)], [group], group, Log())
    objective = distillation(hidden_weight=30.0)
    stage = Stage("student", (objective,), SHARED, objective, SHARED, SPEC.scale, 0.0, "none")
    for size in (1, 2, 4):
        problem.config.train.batch_size = size
        job = make_job(stage, problem.model, [member], problem.config, tmp_path / "stage")
        state = init_state(stack_adapters([adapter]), job.optimizer)
        found += validate(load_signals(job, state, tmp_path / "signals"), state.adapter)
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


def test_a_stage_trains_on_two_groups_and_validates_on_the_first(tmp_path):
    both, lines = run(tmp_path / "both", (1.0, 0.5))
    assert len(lines) == 3 and lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["valid_loss"] > 0
    first, _ = run(tmp_path / "first", (1.0, 0.5), groups=1)
    nothing, _ = run(tmp_path / "nothing", (1.0, 1e-9))
    assert_close(nothing, first, 1e-3)
    with pytest.raises(AssertionError):
        assert_close(both, first, 1e-3)
