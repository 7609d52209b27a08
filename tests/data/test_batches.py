import dataclasses
import itertools

import jax
import numpy as np
import pytest

from rdjax.data.batches import Batch, Side, Slots, as_update, batch_shape, collate, epoch_order, steps_per_epoch
from rdjax.data.pairs import Pair, Prompts

EOS = 99
OURS = Slots(variant="ours", hidden_positions="response", reduction="token")
SHARED = OURS._replace(hidden_positions="shared")
PUBLISHED = OURS._replace(variant="published")
SAMPLE = OURS._replace(reduction="sample")


def pair(rule: int, tail: int, response: int, ended: bool = True) -> Pair:
    """Teacher: `rule` + `tail` tokens; student: 2 + `tail`; the tail is shared. All ids differ, but for the tail's."""
    shared = tuple(range(20, 20 + tail))
    prompts = Prompts("", "", (*range(1, 1 + rule), *shared), (18, 19, *shared), tail, "row")
    return Pair(prompts, tuple(range(50, 50 + response)), ended)


PAIRS = (pair(9, 4, 3), pair(5, 6, 1), pair(12, 1, 5, ended=False))


def batch_of(slots: Slots, rows: int = len(PAIRS), pairs=PAIRS) -> Batch:
    return collate(pairs, rows, batch_shape(PAIRS, slots), slots, EOS)


def sequences(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return pair.prompts.teacher_ids + pair.response_ids, pair.prompts.student_ids + pair.response_ids


def real(side: Side, batch: Batch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's prediction and aligned positions, less the padding."""
    predict = side.predict_BP[row][batch.weight_BP[row] > 0]
    return predict, side.aligned_BQ[row][batch.hidden_weight_BQ[row] > 0]


def sides(batch: Batch):
    return itertools.product(range(len(PAIRS)), (batch.teacher, batch.student))


def test_tokens_are_prompt_and_response_padded_on_the_right():
    batch = batch_of(OURS)
    for row, both in enumerate(map(sequences, PAIRS)):
        for side, ids in zip((batch.teacher, batch.student), both, strict=True):
            assert side.lengths_B[row] == len(ids)
            assert side.tokens_BT[row, : len(ids)].tolist() == list(ids)
            assert not side.tokens_BT[row, len(ids) :].any()


def test_every_label_follows_its_prediction_position():
    batch = batch_of(OURS)
    for row, side in sides(batch):
        predict, _ = real(side, batch, row)
        followed = [*side.tokens_BT[row, : side.lengths_B[row]], EOS]
        assert [followed[at + 1] for at in predict] == batch.labels_BP[row, : len(predict)].tolist()


def test_the_labels_are_the_response_and_its_end():
    batch = batch_of(OURS)
    labels = [batch.labels_BP[row][batch.weight_BP[row] > 0].tolist() for row in range(3)]
    # The last response was cut short by a limit: it teaches no end.
    assert labels == [[50, 51, 52, EOS], [50, EOS], [50, 51, 52, 53, 54]]


def test_the_published_variant_reads_at_the_response_itself():
    batch = batch_of(PUBLISHED)
    for row, side in sides(batch):
        predict, aligned = real(side, batch, row)
        assert side.tokens_BT[row, predict].tolist() == list(PAIRS[row].response_ids)
        assert aligned.tolist() == predict.tolist()
    assert batch.labels_BP[0, :3].tolist() == [51, 52, EOS]


@pytest.mark.parametrize("variant", ["ours", "published"])
def test_shared_positions_are_the_whole_tail(variant):
    response, shared = (batch_of(slots._replace(variant=variant)) for slots in (OURS, SHARED))
    for row in range(len(PAIRS)):
        for name in ("teacher", "student"):
            few, many = (real(getattr(batch, name), batch, row)[1].tolist() for batch in (response, shared))
            assert set(few) <= set(many)
            prompt = len(getattr(PAIRS[row].prompts, f"{name}_ids"))
            assert many == list(range(prompt - PAIRS[row].prompts.shared, few[-1] + 1))


@pytest.mark.parametrize("slots", [OURS, SHARED, PUBLISHED])
def test_both_sides_gather_the_same_tokens(slots):
    batch = batch_of(slots)
    for row in range(len(PAIRS)):
        gathered = [[side.tokens_BT[row, at].tolist() for at in real(side, batch, row)] for side in batch[:2]]
        assert gathered[0] == gathered[1]


def test_without_a_shared_tail_the_last_prompt_token_still_predicts():
    lone = dataclasses.replace(PAIRS[0], prompts=dataclasses.replace(PAIRS[0].prompts, shared=0))
    for slots in (OURS, SHARED):
        batch = collate([lone], 1, batch_shape([lone], slots), slots, EOS)
        predict, aligned = real(batch.teacher, batch, 0)
        assert predict.tolist() == aligned.tolist() == [12, 13, 14, 15]


def test_losses_of_one_slot_number_mean_the_same_position():
    batch = batch_of(OURS)
    assert batch.weight_BP.shape == batch.labels_BP.shape == batch.teacher.predict_BP.shape
    assert batch.hidden_weight_BQ.shape == batch.student.aligned_BQ.shape
    np.testing.assert_array_equal(batch.weight_BP, batch.hidden_weight_BQ)


@pytest.mark.parametrize("slots", [OURS, SHARED, SAMPLE, PUBLISHED, SAMPLE._replace(hidden_positions="shared")])
@pytest.mark.parametrize(("pairs", "rows"), [(PAIRS, 3), (PAIRS[:2], 4), (PAIRS[2:], 4)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_weights_of_an_update_sum_to_one(slots, pairs, rows, accumulation):
    if rows % accumulation:
        rows += 1
    update = as_update(batch_of(slots, rows, pairs), accumulation)
    assert update.weight_BP.sum() == pytest.approx(1, abs=1e-6)
    assert update.hidden_weight_BQ.sum() == pytest.approx(1, abs=1e-6)


def test_token_reduction_weighs_every_token_alike():
    weights = as_update(batch_of(OURS, rows=4), 2).weight_BP
    np.testing.assert_allclose(weights[weights > 0], 1 / (4 + 2 + 5), rtol=1e-6)


def test_sample_reduction_weighs_every_sample_alike():
    update = as_update(batch_of(SAMPLE, rows=4), 1)
    for weights in (update.weight_BP[0], update.hidden_weight_BQ[0]):
        np.testing.assert_allclose(weights.sum(axis=1), [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)
        for row in weights[:3]:
            assert len(set(row[row > 0].tolist())) == 1


def test_padding_rows_weigh_nothing():
    batch = batch_of(OURS, rows=5)
    assert not batch.weight_BP[3:].any() and not batch.hidden_weight_BQ[3:].any()
    # One token long: attention over nothing would not be finite.
    assert batch.teacher.lengths_B[3:].tolist() == batch.student.lengths_B[3:].tolist() == [1, 1]


def test_an_update_keeps_rows_in_order():
    batch = batch_of(OURS, rows=4)
    update = as_update(batch, 2)
    assert all(leaf.shape[:2] == (2, 2) for leaf in jax.tree.leaves(update))
    tokens = update.teacher.tokens_BT
    np.testing.assert_array_equal(tokens.reshape(4, -1), batch.teacher.tokens_BT)


def test_the_shape_holds_every_pair_in_steps_of_eight():
    # The longest have 18 and 9 tokens, 5 prediction and 7 aligned positions.
    assert batch_shape(PAIRS, SHARED) == (24, 16, 8, 8, 0)
    assert batch_shape(PAIRS, SHARED, prefix=8) == (16, 16, 8, 8, 8)


def test_one_shape_serves_every_batch():
    shape = batch_shape(PAIRS, OURS)
    made = [collate(part, 2, shape, OURS, EOS) for part in (PAIRS[:2], PAIRS[2:])]
    assert jax.tree.map(np.shape, made[0]) == jax.tree.map(np.shape, made[1])


def test_epoch_order_follows_from_seed_and_epoch():
    assert epoch_order(50, 3, 7) == epoch_order(50, 3, 7)
    assert sorted(epoch_order(50, 3, 7)) == list(range(50))
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_steps_per_epoch_counts_a_smaller_last_update():
    assert [steps_per_epoch(count, 4) for count in (1, 4, 5, 8)] == [1, 1, 2, 2]
