"""Trackers of metrics beside the run's own files."""

import sys
import types

import pytest

from rdjax.errors import UserError
from rdjax.storage.metrics import MetricsLog


def test_numbers_go_to_every_tracker_until_the_log_is_closed(tmp_path, monkeypatch):
    said = []
    run = types.SimpleNamespace(log=said.append, finish=lambda: said.append("finished"))
    begun = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **fields: begun.append(fields) or run))
    client = types.SimpleNamespace(
        get_experiment_by_name=lambda name: None,
        create_experiment=lambda name: "7",
        create_run=lambda number, run_name: types.SimpleNamespace(info=types.SimpleNamespace(run_id=number + run_name)),
        log_metric=lambda run, name, value, step: said.append((run, name, value, step)),
        set_terminated=said.append,
    )
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=lambda: client))
    log = MetricsLog(tmp_path / "run", ("wandb", "mlflow"))
    log.write("student", 20, {"loss": 0.5})
    log.close()
    MetricsLog(tmp_path / "elsewhere" / tmp_path.name / "run", ("wandb",))
    assert all(fields["reinit"] == "create_new" for fields in begun), "several runs are open at once"
    assert begun[0]["id"] != begun[1]["id"], "folders of the same name are different runs"
    assert said == [{"student/loss": 0.5, "step": 20}, ("7run", "student/loss", 0.5, 20), "finished", "7run"]


def test_a_tracker_that_is_missing_or_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        MetricsLog(tmp_path / "run", ("wandb",))

    def no_login(**fields):
        raise RuntimeError("not logged in")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=no_login))
    with pytest.raises(UserError, match=r"wandb cannot be used \(not logged in\)"):
        MetricsLog(tmp_path / "run", ("wandb",))
