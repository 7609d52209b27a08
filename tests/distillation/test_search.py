"""Learning rates that find themselves, and the end of a stage whose validation loss no longer falls."""

import dataclasses
import math

import jax.numpy as jnp
import pytest

from configs import base
from rdjax.distillation import search
from rdjax.distillation.finite import DivergedError
from rdjax.distillation.job import Member, Stage
from rdjax.distillation.optimizer import rate_for_width, with_auto_rate
from rdjax.distillation.progress import Progress, has_converged, keep_best
from rdjax.distillation.stage import Trained
from rdjax.errors import UserError
from rdjax.storage.metrics import METRICS, MetricsLog, read_metrics, student_lines
from tests.distillation.case import DISTILL, SHARED


class Model:
    config = type("Config", (), {"width": 160})


def stage() -> Stage:
    return Stage("student", (DISTILL,), SHARED, DISTILL, SHARED, 1.0, 0.0, "none")


def member() -> Member:
    return Member(0, {"start": 0}, [], [], None, None)


def with_losses(monkeypatch, loss_of) -> list[float]:
    """Replaces the training by a function from rates to validation losses; returns the rates that are tried."""
    rates = []

    def run_stage(stage, model, members, config, folder):
        rate = config.optimizer.learning_rate
        rates.append((rate, config.train.epochs or config.train.updates))
        loss = loss_of(rate)
        if math.isnan(loss):
            raise DivergedError("the loss is nan")
        return [Trained({"rate": rate}, loss, 1.0, rate) for _ in members]

    monkeypatch.setattr(search, "run_stage", run_stage)
    return rates


def test_the_rate_follows_from_the_width():
    assert rate_for_width(2000) == 5e-4
    assert rate_for_width(160) == pytest.approx(3.6e-3, rel=0.01)
    config = base.get_config()
    assert with_auto_rate(config, 2000).optimizer.learning_rate == 5e-4
    config.optimizer.learning_rate = 1e-3
    assert with_auto_rate(config, 2000).optimizer.learning_rate == 1e-3


def test_a_rate_at_which_the_loss_falls_is_kept(monkeypatch, tmp_path):
    rates = with_losses(monkeypatch, lambda rate: 0.2)
    (found,) = search.train_stage(stage(), Model, [member()], base.get_config(), tmp_path)
    assert rates == [(rate_for_width(160), 200)] and found.valid_loss == 0.2


@pytest.mark.parametrize("first", [1.0, float("nan")])
def test_a_rate_that_is_wrong_gives_way_to_the_best_of_three(monkeypatch, tmp_path, first):
    usual = rate_for_width(160)
    losses = {1: first, 10: 0.6, 3: 0.3, 1 / 3: 0.9}
    rates = with_losses(monkeypatch, lambda rate: losses[min(losses, key=lambda key: abs(usual / key - rate))])
    (found,) = search.train_stage(stage(), Model, [member()], base.get_config(), tmp_path)
    assert [updates for _, updates in rates] == [200, 50, 50, 50, 200]
    assert found.adapter["rate"] == pytest.approx(usual / 3) and rates[-1][0] == pytest.approx(usual / 3)


def test_trials_are_a_part_of_the_epochs_where_these_give_the_length(monkeypatch, tmp_path):
    config = base.get_config()
    config.train.epochs = 20
    lengths = with_losses(monkeypatch, lambda rate: 1.0 if rate > 1e-3 else 0.5)
    search.train_stage(stage(), Model, [member()], config, tmp_path)
    assert [epochs for _, epochs in lengths] == [20, 5, 5, 5, 20]


def test_what_was_learnt_stays_where_no_rate_is_better(monkeypatch, tmp_path):
    with_losses(monkeypatch, lambda rate: 0.97)
    (found,) = search.train_stage(stage(), Model, [member()], base.get_config(), tmp_path)
    assert found.adapter["rate"] == rate_for_width(160)


@pytest.mark.parametrize("end", [0.95, float("nan")])
def test_of_a_training_that_is_given_up_the_report_shows_nothing(monkeypatch, tmp_path, end):
    """Its trial was better than the first training, but the training at the same rate was not, or diverged."""
    usual = rate_for_width(160)

    def run_stage(stage, model, members, config, folder):
        log.write(stage.name, 0, {"valid_loss": 1.0})
        if "_at_" in stage.name and math.isnan(end):
            raise DivergedError("the loss is nan")
        loss = end if "_at_" in stage.name else 0.5 if "_trial_" in stage.name else 0.93
        return [Trained({"rate": config.optimizer.learning_rate}, loss, 1.0, usual)]

    monkeypatch.setattr(search, "run_stage", run_stage)
    log = MetricsLog(tmp_path)
    one = dataclasses.replace(member(), log=log)
    (found,) = search.train_stage(stage(), Model, [one], base.get_config(), tmp_path)
    log.close()
    assert found.adapter["rate"] == usual
    assert [line["stage"] for line in student_lines(read_metrics(tmp_path / METRICS))] == ["student"]


def test_members_that_fail_go_on_apart(monkeypatch, tmp_path):
    names = []

    def run_stage(stage, model, members, config, folder):
        names.append(stage.name)
        return [Trained({}, 1.0 if stage.name == "student" else 0.5, 1.0, 1e-3) for _ in members]

    monkeypatch.setattr(search, "run_stage", run_stage)
    members = [dataclasses.replace(member(), seed=3) for _ in range(2)]  # several rules have one seed
    search.train_stage(stage(), Model, members, base.get_config(), tmp_path)
    assert len(names) == len({*names}) == 9


def test_a_loss_that_is_never_finite_is_an_error(monkeypatch, tmp_path):
    with_losses(monkeypatch, lambda rate: float("nan"))
    with pytest.raises(UserError, match=r"so at the rates .*; set config"):
        search.train_stage(stage(), Model, [member()], base.get_config(), tmp_path)


def test_a_rate_that_the_user_sets_is_taken(monkeypatch, tmp_path):
    rates = with_losses(monkeypatch, lambda rate: 1.0)
    config = base.get_config()
    config.optimizer.learning_rate = 1e-5
    search.train_stage(stage(), Model, [member()], config, tmp_path)
    assert rates == [(1e-5, 200)]


def follow(losses: list[float], **train) -> tuple[int, float]:
    """Validates after every 20 updates; returns the number of validations, and the best loss that was kept."""
    settings = base.get_config().train
    settings.update(train)
    adapter = {"a": jnp.zeros((1, 2))}
    state = type("State", (), {"adapter": adapter})
    reached = Progress(state, adapter, [1.0], [1.0], [1.0], [0], 0)
    for number, loss in enumerate(losses, start=1):
        state = type("State", (), {"adapter": {"a": jnp.full((1, 2), float(number))}})
        reached = keep_best(reached._replace(state=state, updates=20 * number), [loss], settings, 20 * (number - 1))
        if has_converged(reached, settings):
            break
    return number, float(reached.best["a"][0, 0])


def test_a_stage_ends_when_its_validation_loss_no_longer_falls():
    falling = [0.9 - 0.04 * number for number in range(20)]
    assert follow(falling) == (20, 20)
    # The last fall is the second; four validations later it ends, but not before update 100.
    flat = [0.5, 0.3, 0.299, 0.298, 0.297, 0.296, 0.29, 0.29]
    assert follow(flat) == (6, 6)
    assert follow(flat, min_updates=140) == (7, 7)
    assert follow(flat, patience=0) == (8, 7)
    assert follow(flat, epochs=3) == (8, 7)


def test_a_stage_that_gets_worse_keeps_what_was_best():
    assert follow([0.5, 0.6, 0.7, 0.8, 0.9, 0.9]) == (5, 1)
    assert follow([float("nan")] * 6) == (5, 0)
