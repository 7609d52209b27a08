"""Checks which prompts the Python API gives to the model; tests/test_user_commands.py has whole runs of the API."""

import types

import pytest

from rdjax import api
from rdjax.evaluation.answers import Answer, System


@pytest.mark.parametrize(("system", "rule"), [("student", ""), ("base", ""), ("base_with_rule", "R")])
def test_a_rule_takes_room_in_the_prompt_of_who_reads_it_alone(system, rule, monkeypatch):
    done = api.Distilled.__new__(api.Distilled)
    done.scores, done._student = {"rule": "R"}, None
    base = {"base": System(None, False), "base_with_rule": System(None, True)}
    done._run = types.SimpleNamespace(model=None, options=None, task=types.SimpleNamespace(rules={}), **base)
    monkeypatch.setattr(api, "prompts_of", lambda model, rows, options: rows)
    monkeypatch.setattr(api, "answer", lambda model, system, rows, options: [Answer([], True, rows[0]["rule"])])
    assert done.generate("Hi", system) == rule
