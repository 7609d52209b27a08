"""Trackers of metrics beside the run's own files."""

import sys
import types

import pytest

from rdjax.errors import UserError
from rdjax.storage.metrics import MetricsLog


def test_numbers_go_to_every_tracker(tmp_path, monkeypatch):
    wandb_log, mlflow_log = [], []
    run = types.SimpleNamespace(log=wandb_log.append)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **fields: run))
    mlflow = types.SimpleNamespace(
        start_run=lambda run_name: None, log_metrics=lambda numbers, step: mlflow_log.append((numbers, step))
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    log = MetricsLog(tmp_path / "run", ("wandb", "mlflow"))
    log.write("student", 20, {"loss": 0.5})
    log.close()
    assert wandb_log == [{"student/loss": 0.5, "step": 20}]
    assert mlflow_log == [({"student/loss": 0.5}, 20)]


def test_a_tracker_that_is_missing_or_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        MetricsLog(tmp_path / "run", ("wandb",))

    def no_login(**fields):
        raise RuntimeError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=no_login))
    with pytest.raises(UserError, match=r"wandb cannot be used \(not logged in\)"):
        MetricsLog(tmp_path / "run", ("wandb",))
