"""Checks how long `rdjax.inspect` expects a run to take."""

import types

import pytest

from configs import base
from rdjax.run import inspection
from rdjax.run.inspection import estimate_cost, further_training


@pytest.mark.parametrize(
    ("settings", "updates", "further"),
    [
        ({"updates": 8}, 8, []),
        ({"updates": 0, "rounds": 3}, 30, []),
        ({"updates": 8, "rounds": 3}, 8, ["3 rounds of practice with 10 updates each"]),
        ({"updates": 0, "epochs": 2, "rounds": 3}, 6, ["3 rounds of practice with 10 updates each"]),
    ],
)
def test_all_rounds_of_practice_count(settings, updates, further, monkeypatch, tmp_path):
    config = base.get_config()
    config.practice.rounds, config.practice.updates = settings.get("rounds", 0), 10
    config.train.updates, config.train.epochs = settings["updates"], settings.get("epochs", 0)

    def try_updates(stage, model, members, config, folder):
        return types.SimpleNamespace(preparing=5.0, update=2.0, updates=config.train.epochs * 3 or config.train.updates)

    monkeypatch.setattr(inspection, "try_updates", try_updates)
    monkeypatch.setattr(inspection, "stage_of", lambda *arguments: (None, []))
    model = types.SimpleNamespace(config=types.SimpleNamespace(width=32))
    cost = estimate_cost(types.SimpleNamespace(config=config, model=model, start=None, workdir=tmp_path), None)
    assert cost["updates"] == updates and cost["training_seconds"] == 5.0 + 2.0 * updates
    assert further_training(config) == cost["further_training"] == further
