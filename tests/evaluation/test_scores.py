"""Tests how far systems are from the rule-conditioned base: with the rule read once for all rows, and per row."""

import numpy as np
import pytest

from configs import base
from rdjax.data import prefix as prefix_module
from rdjax.data.pairs import make_template
from rdjax.data.prefix import NO_PREFIX, shared_prefix
from rdjax.data.shapes import batch_shape, coarse
from rdjax.evaluation.answers import EvalOptions, System
from rdjax.evaluation.divergence import GAP_POSITIONS, divergence, gap_shapes
from rdjax.evaluation.judges import Judge
from rdjax.evaluation.scores import JudgeError, judge_all
from rdjax.generation.options import Decoding
from rdjax.models.load import load_model
from rdjax.models.lora import init_adapter
from rdjax.parallel.mesh import make_mesh
from tests import tiny
from tests.distillation.case import SPEC, random_adapter, random_pairs, ruled_pairs


def options(model) -> EvalOptions:
    """Returns how systems answer: by Alpaca prompts."""
    return EvalOptions(make_template("alpaca", model.tokenizer), 200, Decoding(4), batch_size=3, scale=SPEC.scale)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.write_random_checkpoint(folder, tiny.LLAMA2)
    return load_model(str(tiny.write_tokenizer(folder)), "float32", make_mesh(base.get_config().mesh))


@pytest.fixture(scope="module")
def pairs():
    return ruled_pairs()


def compare(model, pairs):
    start, trained = init_adapter(model.config, SPEC, 0), random_adapter(model.config)
    systems = {
        "base": System(start, with_rule=False),
        "base_with_rule": System(start, with_rule=True),
        "student": System(trained, with_rule=False),
        "student_with_rule": System(trained, with_rule=True),
    }
    shape = gap_shapes({"test": pairs}, options(model), 1)["test"]
    return shape, divergence(model, systems["base_with_rule"], systems, pairs, shape, options(model))


def test_a_prefix_that_is_read_once_changes_no_divergence(model, pairs, monkeypatch):
    shape, reused = compare(model, pairs)
    assert (shape.teacher.prefix, shape.student.prefix) == (16, 16)
    monkeypatch.setattr(prefix_module, "SHORTEST_PREFIX", 10**6)
    shape, whole = compare(model, pairs)
    assert (shape.teacher.prefix, shape.student.prefix) == (0, 0)
    for name, far in whole.items():
        np.testing.assert_allclose(reused[name].kl, far.kl, rtol=1e-5)
        np.testing.assert_allclose(reused[name].hidden_L, far.hidden_L, rtol=1e-4, atol=1e-6)
    assert whole["base_with_rule"].kl == 0 < min(whole[name].kl for name in whole if name != "base_with_rule")


def test_the_reference_is_as_far_from_itself_when_it_is_read_twice(model, pairs):
    start = init_adapter(model.config, SPEC, 0)
    # Another object with the same numbers: no shortcut.
    again = System(dict(start), with_rule=True)
    shape = gap_shapes({"test": pairs}, options(model), 1)["test"]
    far = divergence(model, System(start, with_rule=True), {"again": again}, pairs, shape, options(model))["again"]
    assert abs(far.kl) < 1e-6 and max(far.hidden_L) < 1e-6


def test_groups_share_a_shape_where_their_prefixes_are_as_long(model, pairs):
    others = random_pairs(3, seed=5)
    shapes = gap_shapes({"one": pairs[:2], "two": pairs[2:], "bare": others}, options(model), 1)
    prefix = shared_prefix(pairs, GAP_POSITIONS)
    assert tuple(map(len, prefix)) == (16, 16)
    assert shapes["one"] == shapes["two"] == batch_shape([pairs[:2], pairs[2:]], 1, GAP_POSITIONS, prefix, coarse)
    assert shapes["bare"] == batch_shape([others], 1, GAP_POSITIONS, NO_PREFIX, coarse)


def test_a_judge_that_fails_is_named_with_all_that_its_error_says():
    def broken(responses, rows):
        raise LookupError("\n*****\n  Resource 'punkt_tab' not found.\n")

    with pytest.raises(JudgeError, match=r"(?s)the judge ill failed on test, system base: LookupError: .*punkt_tab"):
        judge_all(Judge("ill", "ill", broken), "test", "base", ["yes"], [{}])
