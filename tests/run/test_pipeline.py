"""Checks which adapters a run trains, and when one adapter is used under two names."""

import types

import pytest

from configs import base
from rdjax.run import pipeline


@pytest.mark.parametrize(
    ("student_adapter", "trained"), [("", ["enhanced_teacher"]), ("old", ["enhanced_teacher", "student"])]
)
def test_the_enhanced_teacher_is_the_student_only_where_both_start_alike(
    student_adapter, trained, monkeypatch, tmp_path
):
    config = base.get_config()
    config.method, config.model.student_adapter = "inst_tune_with_rule", student_adapter
    config.eval.systems = ("base", "student", "enhanced_with_rule")
    names = []

    def train_adapters(runs, name, method, teachers, folder):
        names.append(name)
        return [types.SimpleNamespace(adapter=name)]

    monkeypatch.setattr(pipeline, "train_adapters", train_adapters)
    monkeypatch.setattr(pipeline, "run_practice", lambda runs, trained, teachers, folder: trained)
    monkeypatch.setattr(pipeline, "export_adapters", lambda runs, name, adapters: None)
    (adapters,) = pipeline.train_all([types.SimpleNamespace(config=config, start="start")], tmp_path)
    assert names == trained and adapters["student"] == trained[-1]
