"""Updates that are not finite are skipped and counted; many in a row, or the last one, end the stage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rdjax.data.batches import as_update, collate
from rdjax.data.prefix import NO_PREFIX
from rdjax.data.shapes import batch_shape
from rdjax.distillation.finite import MOST_SKIPPED, DivergedError, StageLabel, check_losses, check_skipped
from rdjax.distillation.step import GroupUpdate, init_state, train_step
from tests.distillation.case import OBJECTIVES, OURS, make_case, random_adapter, random_pairs, settings_of


def take(case, weights: list[float]):
    """Takes an update for each weight of the batch's positions; returns the states and the losses."""
    settings = settings_of(case, OBJECTIVES["tune_without_rule"])
    optimizer = optax.adamw(1e-2)
    pairs = random_pairs(2, 0)
    shape = batch_shape([pairs], 2, OURS, NO_PREFIX)
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], as_update(collate(pairs, 2, shape, OURS, eos=257), 1))
    state = init_state(jax.tree.map(lambda leaf: leaf[None], random_adapter(case.config, 0)), optimizer)
    states, losses = [jax.device_get(state)], []
    for weight in weights:
        update = (GroupUpdate(batch._replace(weight_BP=batch.weight_BP * weight), None, None),)
        state, metrics = train_step(
            state, case.base, update, jnp.zeros(1, jnp.uint32), settings=settings, optimizer=optimizer
        )
        states.append(jax.device_get(state))
        losses.append(float(metrics["loss"][0]))
    return states, losses


def same(one, other) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(left, right) for left, right in leaves)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_update_is_skipped_and_the_next_one_goes_on(bad):
    states, losses = take(make_case(), [1.0, bad, bad, 1.0])
    good, _ = take(make_case(), [1.0, 1.0])
    assert not np.isfinite(losses[1:3]).any()
    assert same(states[1].adapter, states[3].adapter) and same(states[1].moments, states[3].moments)
    assert [int(state.in_row[0]) for state in states] == [0, 0, 1, 2, 0]
    assert [int(state.skipped[0]) for state in states] == [0, 0, 1, 2, 2]
    assert int(states[-1].step[0]) == 4
    assert same(states[-1].adapter, good[-1].adapter)


def checked(skipped: int, in_row: int, updates: int = 10, folder=None) -> dict[str, float]:
    """Checks a member's skipped updates, of 20."""
    (more,) = check_skipped(StageLabel("student", [3], folder), [skipped], [in_row], [0.5], updates, last=updates == 20)
    return more


def test_what_was_skipped_is_counted(capsys):
    assert checked(0, 0) == {}
    assert capsys.readouterr().out == ""
    assert checked(2, 0) == {"skipped": 2.0}
    assert "student, seed 3: 2 updates skipped so far, which were not finite" in capsys.readouterr().out


@pytest.mark.parametrize(("in_row", "updates"), [(MOST_SKIPPED, 10), (1, 20)])
def test_many_in_a_row_or_the_last_one_end_the_stage(tmp_path, in_row, updates):
    (tmp_path / "8").mkdir()
    with pytest.raises(DivergedError, match=rf"the last {in_row} updates .*; the state before is kept in {tmp_path}"):
        checked(7, in_row, updates, folder=tmp_path)


def test_a_validation_loss_that_is_not_finite_ends_the_stage(tmp_path):
    label = StageLabel("student", [3], tmp_path)
    check_losses(label, [0.5], "now")
    with pytest.raises(DivergedError, match="student, seed 3: the validation loss is nan now"):
        check_losses(label, [float("nan")], "now")
