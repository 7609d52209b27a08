"""Checks the layout of packed rows and the curriculum."""

import numpy as np

from rdjax.data.rules.refusal import ACTS
from rdjax.data.rules.sentiment import FIELDS
from rdjax.rulebook import batches
from rdjax.rulebook.batches import pack
from rdjax.rulebook.documents import HEAD
from tests.rulebook.recipe import small_recipe

EOS, LENGTH = 9, 16


def packed(questions):
    return pack([1, 2, 3], questions, LENGTH, EOS, prefix_weight=0.25)


def test_pack_lays_questions_behind_the_prefix():
    row = packed([([4, 5], [6]), ([7], [8, 8])])
    np.testing.assert_array_equal(row.tokens_BT[:9], [1, 2, 3, 4, 5, 6, 7, 8, 8])
    np.testing.assert_array_equal(row.segments_BT, [1] * 3 + [2] * 3 + [3] * 3 + [0] * 7)


def test_pack_positions_of_every_question_follow_the_prefix():
    row = packed([([4, 5], [6]), ([7], [8, 8])])
    np.testing.assert_array_equal(row.positions_BT[:9], [0, 1, 2, 3, 4, 5, 3, 4, 5])


def test_pack_targets_end_with_eos_and_never_leave_their_segment():
    row = packed([([4, 5], [6]), ([7], [8, 8])])
    np.testing.assert_array_equal(row.targets_BT[:9], [2, 3, 0, 5, 6, EOS, 8, 8, EOS])


def test_pack_weighs_answers_fully_and_questions_not_at_all():
    row = packed([([4, 5], [6]), ([7], [8, 8])])
    # The last prefix token has no target of its own: what follows it differs from question to question.
    np.testing.assert_array_equal(row.weights_BT[:9], [0.25, 0.25, 0, 0, 1, 1, 1, 1, 1])
    assert not row.weights_BT[9:].any()


def test_pack_leaves_out_a_question_that_does_not_fit_whole():
    row = packed([([4, 5], [6]), ([7] * 10, [8]), ([4], [5])])
    assert row.segments_BT.max() == 2
    assert not row.tokens_BT[6:].any() and not row.weights_BT[6:].any()


def test_pack_fills_the_row_to_the_last_token():
    row = packed([([4] * 12, [6])])
    assert row.segments_BT.tolist() == [1] * 3 + [2] * 13
    assert row.targets_BT[-1] == EOS


KINDS = (FIELDS | ACTS).keys()


def named_subjects(config, step: int) -> list[str]:
    """Returns what the drills of a step ask about."""
    questions = [question for document in batches.make_documents(config, step) for question, _ in document.questions]
    return [question.removeprefix("What about ").rstrip("?") for question in questions]


def test_the_curriculum():
    config = small_recipe(**{"data.rows": 200, "data.drills_alone": 10, "data.rules_by": 110, "data.drills": 0.25})
    config.data.update({"drill_rows": 20, "named_from": 5})

    def shares(step: int) -> tuple[float, float]:
        """Returns the shares of documents with an instruction, and of drills."""
        documents = batches.make_documents(config, step)
        instructed = [document.prefix != HEAD for document in documents]
        drills = [document.questions[0][0].startswith("What about") for document in documents]
        return sum(instructed) / len(documents), sum(drills) / len(documents)

    assert shares(0) == shares(9) == (1, 1)
    words = {kind for step in (0, 4) for kind in named_subjects(config, step)}
    assert not words & KINDS and len(words) > 20
    assert len(set(named_subjects(config, 9)) & KINDS) > 5
    instructed, drills = shares(10)
    assert instructed == drills and 0.15 < drills < 0.35
    instructed, drills = shares(60)
    assert 0.45 < instructed < 0.75 and 0.15 < drills < 0.35
    instructed, drills = shares(110)
    assert instructed > 0.85 and 0.15 < drills < 0.35
