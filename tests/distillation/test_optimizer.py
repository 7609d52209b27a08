"""Schedules and the identity of optimizers."""

import numpy as np
import pytest
from ml_collections import config_dict

from rdjax.distillation.optimizer import learning_rate_schedule, make_optimizer


def settings(**changes) -> config_dict.ConfigDict:
    plain = {"learning_rate": 0.1, "warmup_steps": 5, "schedule": "linear", "clip_norm": 0.0, "weight_decay": 0.0}
    return config_dict.ConfigDict(plain | changes)


def test_equal_settings_are_one_object_and_others_are_not():
    # Steps are compiled for the object: what the next cell of a sweep needs is compiled already.
    one = make_optimizer(settings(), 40)
    assert make_optimizer(settings(), 40) is one
    for other in (settings(learning_rate=0.2), settings(clip_norm=1.0), settings(weight_decay=0.1)):
        assert make_optimizer(other, 40) is not one
    assert make_optimizer(settings(), 41) is not one


@pytest.mark.parametrize(
    ("decay", "middle", "last"), [("linear", 0.05, 0.0), ("cosine", 0.05, 0.0), ("constant", 0.1, 0.1)]
)
def test_schedules_warm_up_and_decay_to_the_last_step(decay, middle, last):
    rate = learning_rate_schedule(settings(schedule=decay), 25)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 5, 15, 25)], [0.0, 0.02, 0.1, middle, last], atol=1e-7)


def test_a_short_stage_reaches_its_peak():
    np.testing.assert_allclose(learning_rate_schedule(settings(), 1)(0), 0.1)
    np.testing.assert_allclose([learning_rate_schedule(settings(), 4)(step) for step in range(4)], [0, 0.05, 0.1, 0.05])
