import dataclasses
import itertools

import jax
import numpy as np
import pytest

from rdjax.data import prefix as prefix_module
from rdjax.data import shapes
from rdjax.data.batches import Batch, Side, as_update, collate, epoch_order, indices_in_rows, steps_per_epoch
from rdjax.data.pairs import Pair, Prompts
from rdjax.data.positions import LossPositions, position_offsets
from rdjax.data.prefix import NO_PREFIX, SharedPrefix, equal_lengths, shared_prefix, shared_prefix_length
from rdjax.data.shapes import BatchShape, SideShape, batch_shape, choose_sizes, coarse, deal, even_batches, fine

EOS = 99
OURS = LossPositions(variant="ours", hidden_positions="response", reduction="token")
SHARED = OURS._replace(hidden_positions="shared")
PUBLISHED = OURS._replace(variant="published")
SAMPLE = OURS._replace(reduction="sample")


def pair(rule: int, tail: int, response: int, ended: bool = True) -> Pair:
    """Teacher: `rule` + `tail` tokens; student: 2 + `tail`; the tail is shared. All ids differ, but for the tail's."""
    shared = tuple(range(20, 20 + tail))
    prompts = Prompts("", "", (*range(1, 1 + rule), *shared), (18, 19, *shared), tail, "row")
    return Pair(prompts, tuple(range(50, 50 + response)), ended)


PAIRS = (pair(9, 4, 3), pair(5, 6, 1), pair(12, 1, 5, ended=False))


def batch_of(slots: LossPositions, rows: int = 1, pairs=PAIRS, prefix: SharedPrefix = NO_PREFIX) -> Batch:
    return collate(pairs, rows, batch_shape([PAIRS], rows, slots, prefix), slots, EOS)


def sequences(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return pair.prompts.teacher_ids + pair.response_ids, pair.prompts.student_ids + pair.response_ids


def unpacked(side: Side, row: int) -> list[list[int]]:
    """The sequences of a row."""
    places = [[at for at in own if at >= 0] for own in side.unpack_BEU[row]]
    return [side.tokens_BT[row, own].tolist() for own in places if own]


def real(side: Side, batch: Batch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's prediction and aligned positions, less the padding."""
    predict = side.predict_BP[row][batch.weight_BP[row] > 0]
    return predict, side.aligned_BQ[row][batch.hidden_weight_BQ[row] > 0]


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_rows_hold_the_sequences_in_order(rows):
    batch = batch_of(OURS, rows)
    for number, side in enumerate((batch.teacher, batch.student)):
        assert [ids for row in range(rows) for ids in unpacked(side, row)] == [
            list(sequences(pair)[number]) for pair in PAIRS
        ]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_packing_and_unpacking_are_inverse(rows):
    batch = batch_of(OURS, rows)
    for side in (batch.teacher, batch.student):
        longest = side.unpack_BEU.shape[2]
        for row in range(rows):
            places = side.unpack_BEU[row].ravel()
            for at, place in enumerate(places):
                assert place < 0 or side.pack_BT[row, place] == at
            tokens = (side.pack_BT[row] >= 0).sum()
            assert tokens == (places >= 0).sum() == sum(map(len, unpacked(side, row)))
            assert (side.pack_BT[row, :tokens] >= 0).all(), "padding stands at the end"
            for own in side.unpack_BEU[row].reshape(-1, longest):
                length = (own >= 0).sum()
                assert side.positions_BT[row, own[:length]].tolist() == list(range(length))


def test_every_label_follows_its_prediction_position():
    batch = batch_of(OURS)
    for side in (batch.teacher, batch.student):
        predict, _ = real(side, batch, 0)
        tokens, ends = side.tokens_BT[0], set((side.unpack_BEU[0].max(axis=-1)).tolist())
        followed = [EOS if at in ends else tokens[at + 1] for at in predict]
        assert followed == batch.labels_BP[0, : len(predict)].tolist()


def test_the_labels_are_the_response_and_its_end():
    batch = batch_of(OURS, rows=3)
    labels = [batch.labels_BP[row][batch.weight_BP[row] > 0].tolist() for row in range(3)]
    # The last response was cut short by a limit: it teaches no end.
    assert labels == [[50, 51, 52, EOS], [50, EOS], [50, 51, 52, 53, 54]]
    together = batch_of(OURS)
    assert together.labels_BP[0][together.weight_BP[0] > 0].tolist() == [*itertools.chain(*labels)]


def test_the_published_variant_reads_at_the_response_itself():
    batch = batch_of(PUBLISHED, rows=3)
    for row, side in itertools.product(range(3), (batch.teacher, batch.student)):
        predict, aligned = real(side, batch, row)
        assert side.tokens_BT[row, predict].tolist() == list(PAIRS[row].response_ids)
        assert aligned.tolist() == predict.tolist()
    assert batch.labels_BP[0, :3].tolist() == [51, 52, EOS]


@pytest.mark.parametrize("variant", ["ours", "published"])
def test_shared_positions_are_the_whole_tail(variant):
    response, shared = (batch_of(slots._replace(variant=variant), rows=3) for slots in (OURS, SHARED))
    for row in range(len(PAIRS)):
        for name in ("teacher", "student"):
            few, many = (real(getattr(batch, name), batch, row)[1].tolist() for batch in (response, shared))
            assert set(few) <= set(many)
            prompt = len(getattr(PAIRS[row].prompts, f"{name}_ids"))
            assert many == list(range(prompt - PAIRS[row].prompts.shared, few[-1] + 1))


@pytest.mark.parametrize("slots", [OURS, SHARED, PUBLISHED])
@pytest.mark.parametrize("rows", [1, 2])
def test_both_sides_gather_the_same_tokens(slots, rows):
    batch = batch_of(slots, rows)
    for row in range(rows):
        gathered = [[side.tokens_BT[row, at].tolist() for at in real(side, batch, row)] for side in batch[:2]]
        assert gathered[0] == gathered[1]


def test_without_a_shared_tail_the_last_prompt_token_still_predicts():
    lone = dataclasses.replace(PAIRS[0], prompts=dataclasses.replace(PAIRS[0].prompts, shared=0))
    for slots in (OURS, SHARED):
        batch = batch_of(slots, pairs=[lone])
        predict, aligned = real(batch.teacher, batch, 0)
        assert predict.tolist() == aligned.tolist() == [12, 13, 14, 15]


def test_losses_of_one_slot_number_mean_the_same_position():
    batch = batch_of(OURS)
    assert batch.weight_BP.shape == batch.labels_BP.shape == batch.teacher.predict_BP.shape
    assert batch.hidden_weight_BQ.shape == batch.student.aligned_BQ.shape
    np.testing.assert_array_equal(batch.weight_BP, batch.hidden_weight_BQ)


@pytest.mark.parametrize("slots", [OURS, SHARED, SAMPLE, PUBLISHED, SAMPLE._replace(hidden_positions="shared")])
@pytest.mark.parametrize(("pairs", "rows"), [(PAIRS, 1), (PAIRS[:2], 2), (PAIRS[2:], 4)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_weights_of_an_update_sum_to_one(slots, pairs, rows, accumulation):
    update = as_update(batch_of(slots, rows * accumulation, pairs), accumulation)
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


def test_rows_without_a_pair_weigh_nothing():
    batch = batch_of(OURS, rows=5)
    assert not batch.weight_BP[3:].any() and not batch.hidden_weight_BQ[3:].any()
    assert (batch.teacher.unpack_BEU[3:] == -1).all() and (batch.student.pack_BT[3:] == -1).all()


def test_an_update_keeps_rows_in_order():
    batch = batch_of(OURS, rows=4)
    update = as_update(batch, 2)
    assert all(leaf.shape[:2] == (2, 2) for leaf in jax.tree.leaves(update))
    tokens = update.teacher.tokens_BT
    np.testing.assert_array_equal(tokens.reshape(4, -1), batch.teacher.tokens_BT)


@pytest.mark.parametrize(("count", "rows"), [(5, 2), (5, 1), (2, 4), (8, 4), (7, 3)])
def test_rows_are_dealt_as_many_pairs_as_there_are(count, rows):
    dealt = deal(range(count), rows)
    assert len(dealt) == rows
    assert [*itertools.chain(*dealt)] == list(range(count))
    assert max(map(len, dealt)) == -(-count // rows)


@pytest.mark.parametrize(
    ("count", "sizes"), [(100, [25] * 4), (33, [17, 16]), (32, [32]), (1, [1]), (70, [24, 24, 22]), (0, [])]
)
def test_even_batches_are_as_few_and_of_about_one_size(count, sizes):
    batches = even_batches(range(count), 32)
    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(count))


def test_the_shape_holds_every_pair_in_steps_of_eight():
    # Together 46 and 26 tokens, the longest 18 and 9; 11 prediction and 19 aligned slots.
    shape = batch_shape([PAIRS], 1, SHARED, NO_PREFIX)
    assert shape == (SideShape(48, 24), SideShape(32, 16), 16, 24, 3)
    apart = batch_shape([PAIRS], 3, SHARED, NO_PREFIX)
    assert apart == (SideShape(24, 24), SideShape(16, 16), 8, 8, 1)
    assert batch_shape([PAIRS[:1], PAIRS[1:2]], 1, SHARED, NO_PREFIX)[:2] == (SideShape(16, 16), SideShape(16, 16))


def test_one_shape_serves_every_batch():
    shape = batch_shape([PAIRS], 1, OURS, NO_PREFIX)
    made = [collate(part, 1, shape, OURS, EOS) for part in (PAIRS[:2], PAIRS[2:])]
    assert jax.tree.map(np.shape, made[0]) == jax.tree.map(np.shape, made[1])


def test_shared_prefix_is_a_multiple_of_eight_that_leaves_every_prompt_a_token():
    assert shared_prefix_length([(*range(30), 40), (*range(30), 41)]) == 24
    assert shared_prefix_length([tuple(range(24)), tuple(range(30))]) == 16
    assert shared_prefix_length([tuple(range(25)), tuple(range(30))]) == 24
    assert shared_prefix_length([tuple(range(15)), tuple(range(15))]) == 0, "too short to pay"
    assert shared_prefix_length([(1, *range(30)), tuple(range(30))]) == 0
    assert shared_prefix_length([[7] * 20]) == 16


def ruled(rule: int) -> list[Pair]:
    """Pairs whose teacher prompts begin with `rule` tokens that all share."""
    made = []
    for one in PAIRS:
        prompts = dataclasses.replace(one.prompts, teacher_ids=tuple(range(200, 200 + rule)) + one.prompts.teacher_ids)
        made.append(dataclasses.replace(one, prompts=prompts))
    return made


@pytest.mark.parametrize("slots", [OURS, SHARED, PUBLISHED])
def test_prefixes_spare_what_the_losses_read(slots, monkeypatch):
    monkeypatch.setattr(prefix_module, "SHORTEST_PREFIX", 8)
    pairs = ruled(21)[:1] * 2
    prefix = len(shared_prefix(pairs, slots).teacher)
    whole = collate(pairs, 2, batch_shape([pairs], 2, slots, NO_PREFIX), slots, EOS)
    assert 8 <= prefix <= whole.teacher.aligned_BQ[0, 0]
    assert whole.teacher.aligned_BQ[0, 0] - prefix < 8


@pytest.mark.parametrize("rows", [1, 2])
def test_behind_a_prefix_the_rest_stands_as_before(rows):
    pairs = ruled(21)
    prefix = shared_prefix(pairs, SHARED)
    assert prefix == SharedPrefix(pairs[0].prompts.teacher_ids[:24], ())
    whole, short = (
        collate(pairs, rows, batch_shape([pairs], rows, SHARED, given), SHARED, EOS) for given in (NO_PREFIX, prefix)
    )
    for row in range(rows):
        for longer, shorter in zip(unpacked(whole.teacher, row), unpacked(short.teacher, row), strict=True):
            assert longer[24:] == shorter
        at = [real(batch.teacher, batch, row) for batch in (whole, short)]
        for one, other in zip(*at, strict=True):
            for leaf in ("tokens_BT", "positions_BT"):
                np.testing.assert_array_equal(
                    getattr(whole.teacher, leaf)[row, one], getattr(short.teacher, leaf)[row, other]
                )
    np.testing.assert_array_equal(whole.labels_BP, short.labels_BP)
    np.testing.assert_array_equal(whole.student.tokens_BT, short.student.tokens_BT)


def test_choose_sizes_add_a_limit_where_it_saves_a_tenth_and_its_own_compiling():
    assert choose_sizes([64, 64, 64] * 100) == [64]
    assert choose_sizes([64, 72, 72] * 100) == [72]
    takes = shapes.COMPILING_TAKES
    assert choose_sizes([40] * 2 * takes + [80] * 100) == [40, 80]
    assert choose_sizes([40] * (2 * takes - 1) + [80] * 100) == [80]
    assert choose_sizes(list(range(8, 808, 8))) == [400, 800]
    clusters = [40] * 300 + [80] * 300 + [160] * 300 + [320] * 300
    assert choose_sizes(clusters)[-1] == 320 and len(choose_sizes(clusters)) == shapes.MOST_SHAPES


def test_slots_of_pairs_find_their_places_in_rows():
    """Numbered through all pairs, in the order in which a batch of some of them has them."""
    predictions, aligned = position_offsets(PAIRS, SHARED)
    assert predictions.tolist() == [0, 4, 6, 11]
    batch = batch_of(SHARED, rows=2, pairs=[PAIRS[2], PAIRS[0]])
    for begins, weights in ((aligned, batch.hidden_weight_BQ), (predictions, batch.weight_BP)):
        places = indices_in_rows([2, 0], begins, 2, weights.shape[1])
        assert places[0][weights[0] > 0].tolist() == list(range(begins[2], begins[3]))
        assert places[1][weights[1] > 0].tolist() == list(range(begins[0], begins[1]))


def test_epoch_order_follows_from_seed_and_epoch():
    assert epoch_order(50, 3, 7) == epoch_order(50, 3, 7)
    assert sorted(epoch_order(50, 3, 7)) == list(range(50))
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_steps_per_epoch_counts_a_smaller_last_update():
    assert [steps_per_epoch(count, 4) for count in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_coarse_sizes_are_few_and_waste_little():
    sizes = [coarse(size) for size in range(1, 4096)]
    assert all(fine(size) <= large <= max(fine(size) + 8, 9 / 8 * fine(size)) for size, large in enumerate(sizes, 1))
    assert len(set(sizes)) < 70
    exact, rounded = (batch_shape([PAIRS], 1, SHARED, NO_PREFIX, way) for way in (fine, coarse))
    assert rounded == BatchShape(
        *(SideShape(coarse(side.tokens), coarse(side.longest)) for side in exact[:2]), *map(coarse, exact[2:4]), 3
    )


def test_prefixes_of_members_are_cut_to_the_shortest():
    prefixes = [SharedPrefix((1,) * 24, (2,) * 16), SharedPrefix((3,) * 16, ())]
    assert equal_lengths(prefixes) == [SharedPrefix((1,) * 16, ()), SharedPrefix((3,) * 16, ())]


def test_the_weight_of_a_group_scales_its_weights():
    whole, half = (as_update(batch_of(SHARED), 1, weight) for weight in (1.0, 0.5))
    np.testing.assert_allclose(half.weight_BP, 0.5 * whole.weight_BP)
    np.testing.assert_allclose(half.hidden_weight_BQ, 0.5 * whole.hidden_weight_BQ)
