"""Checks that distillation teaches: the embedded model learns a written rule in 60 updates."""

import pytest

from configs import quickstart
from rdjax.run.pipeline import evaluate_all, train_all
from rdjax.run.prepare import prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """Scores of a student of quickstart's rule: 16 samples, 15 epochs of 4 updates."""
    config = quickstart.get_config()
    config.task.k, config.train.epochs, config.train.valid_every = 16, 15, 0
    config.task.generated.test_rows = 50
    config.eval.systems = ("base", "student")
    folder = tmp_path_factory.mktemp("learning")
    run = prepare(config, folder / "run")
    (adapters,) = train_all([run], folder / "checkpoints")
    return evaluate_all(run, adapters)["splits"]


@pytest.mark.parametrize("split", ["test_id", "test_ood"])
def test_the_student_follows_the_rule_that_it_does_not_read(splits, split):
    """Seeds 0 to 9 closed 0.93 to 0.995 of the gap and answered 0.87 to 1.0 of the questions."""
    base, student = splits[split]["base"], splits[split]["student"]
    assert base["kl"] > 0.5, "there is a gap to close"
    assert student["gap_closed"] > 0.8
    assert student["exact_match"] > 0.6 > 0.2 > base["exact_match"]


def test_the_student_still_adds(splits):
    assert splits["retain"]["student"]["exact_match"] > 0.6
