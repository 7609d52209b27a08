"""Checks which runs train side by side, and that the logs of all are closed."""

import types

from rdjax.errors import UserError
from rdjax.run import side_by_side
from rdjax.run.side_by_side import finish_runs, group_name


def run_of(folder, name: str = "a", **changes):
    """Returns a run that has only what decides with which others it trains."""
    log = types.SimpleNamespace(closed=0)
    log.close = lambda: setattr(log, "closed", log.closed + 1)
    fields = {"train": [1, 2], "valid": [1], "retained": {"retain": [1]}, "valid_is_gold": False}
    return types.SimpleNamespace(**(fields | changes), workdir=folder / name, log=log)


def test_runs_with_other_numbers_of_pairs_or_another_validation_train_apart(tmp_path):
    others = (
        {"train": [1]},
        {"valid": []},
        {"retained": {}},
        {"retained": {"near_misses": [1]}},
        {"valid_is_gold": True},
    )
    assert len({group_name(run_of(tmp_path, **changes)) for changes in ({}, {}, *others)}) == 1 + len(others)


def test_logs_are_closed_whatever_becomes_of_their_runs(tmp_path, monkeypatch):
    def train_all(runs, folder):
        raise UserError("the loss is not finite")

    monkeypatch.setattr(side_by_side, "train_all", train_all)
    runs = [run_of(tmp_path, "a"), run_of(tmp_path, "b", train=[1])]
    assert set(finish_runs(runs, tmp_path / "checkpoints")) == {"a", "b"}
    assert [run.log.closed for run in runs] == [1, 1]
