"""The loss of a batch and the step: what they must not see, and what must not matter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rdjax.data.batches import as_update, collate
from rdjax.data.pairs import Pair, Prompts
from rdjax.data.prefix import NO_PREFIX
from rdjax.data.shapes import batch_shape
from rdjax.distillation.objective import TUNE_WITHOUT_RULE
from rdjax.distillation.step import GroupUpdate, init_state, train_step
from rdjax.distillation.teacher import teacher_signals
from rdjax.models.layers import stack_layers, unstack_layers
from rdjax.models.lora import merge_adapter, scaled_adapter
from tests import tiny
from tests.distillation.case import (
    KINDS,
    OBJECTIVES,
    OURS,
    PUBLISHED,
    SHARED,
    SPEC,
    assert_close,
    distillation,
    loss_and_grad,
    make_case,
    make_update,
    random_adapter,
    random_pairs,
    settings_of,
    take_member,
)


@pytest.fixture(scope="module")
def case():
    return make_case()


def same_prompts(pairs: list[Pair]) -> list[Pair]:
    """Pairs whose teacher sees no rule."""
    made = []
    for pair in pairs:
        ids = pair.prompts.student_ids
        made.append(dataclasses.replace(pair, prompts=Prompts("", "", ids, ids, len(ids), pair.prompts.where)))
    return made


@pytest.mark.parametrize("slots", [OURS, SHARED, PUBLISHED])
def test_loss_and_gradient_are_zero_when_student_equals_teacher(case, slots):
    adapter = random_adapter(case.config)
    batch = make_update(same_prompts(random_pairs()), slots)
    (loss, _), gradient = loss_and_grad(case, adapter, batch, teacher=adapter)
    assert abs(float(loss)) < 1e-6
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    assert largest < 1e-6
    (loss, _), _ = loss_and_grad(case, adapter, batch, teacher=None)
    assert float(loss) > 1e-3, "a teacher without the adapter differs"


@pytest.mark.parametrize(("kind", "slots"), KINDS)
def test_padding_changes_nothing(case, kind, slots):
    adapter, pairs = random_adapter(case.config), random_pairs()
    objective = OBJECTIVES[kind]
    plain = loss_and_grad(case, adapter, make_update(pairs, slots), objective)
    padded = loss_and_grad(case, adapter, make_update(pairs, slots, wider=5), objective)
    assert_close(padded, plain, 1e-5)


@pytest.mark.parametrize("slots", [OURS, SHARED, PUBLISHED])
@pytest.mark.parametrize("rows", [2, 3, 6])
def test_packed_rows_equal_a_row_for_every_pair(case, slots, rows):
    """Six rows leave two without a pair."""
    adapter, pairs = random_adapter(case.config), random_pairs()
    apart = loss_and_grad(case, adapter, make_update(pairs, slots, rows=4))
    for packed in (1, rows):
        assert_close(loss_and_grad(case, adapter, make_update(pairs, slots, rows=packed)), apart, 1e-5)


def test_dropout_of_a_token_does_not_depend_on_where_it_is_packed(case):
    """Rows, micro-batches and padding are the mesh's business; the masks are the seed's."""
    adapter, pairs = random_adapter(case.config), random_pairs()
    given = {"dropout": 0.5, "dropout_key": jax.random.key(3)}
    apart = loss_and_grad(case, adapter, make_update(pairs, SHARED, rows=4), **given)
    for layout in ({"rows": 1}, {"rows": 3, "wider": 5}, {"rows": 1, "accumulation": 2}):
        assert_close(loss_and_grad(case, adapter, make_update(pairs, SHARED, **layout), **given), apart, 1e-5)
    other = given | {"dropout_key": jax.random.key(4)}
    assert float(loss_and_grad(case, adapter, make_update(pairs, SHARED), **other)[0][0]) != float(apart[0][0])


@pytest.mark.parametrize("slots", [SHARED, PUBLISHED])
def test_accumulated_micro_batches_equal_the_whole_batch(case, slots):
    adapter, pairs = random_adapter(case.config), random_pairs()
    whole = loss_and_grad(case, adapter, make_update(pairs, slots))
    parts = loss_and_grad(case, adapter, make_update(pairs, slots, accumulation=4))
    assert_close(parts, whole, 1e-5)


@pytest.mark.parametrize("policy", ["full", "dots"])
def test_rematerialised_step_equals_the_plain_one(case, policy):
    adapter, batch = random_adapter(case.config), make_update(random_pairs(), SHARED)
    plain = loss_and_grad(case, adapter, batch)
    remat = loss_and_grad(case, adapter, batch, remat=policy)
    assert_close(remat, plain, 1e-5)


@pytest.mark.parametrize("fields", [tiny.QWEN3_5, tiny.GEMMA4], ids=["qwen3_5", "gemma4"])
def test_rematerialised_layers_of_several_kinds_equal_the_plain_ones(fields):
    case = make_case(fields)
    adapter, batch = random_adapter(case.config), make_update(random_pairs(), SHARED)
    plain = loss_and_grad(case, adapter, batch)
    for policy in ("full", "dots"):
        assert_close(loss_and_grad(case, adapter, batch, remat=policy), plain, 1e-5)


def test_unstacked_layers_give_the_loss_and_gradient_of_stacked_ones(case):
    """On CPUs a shallow model's layers are unstacked and looped over; elsewhere they are stacked and scanned."""
    adapter, batch = random_adapter(case.config), make_update(random_pairs(), SHARED)
    base = unstack_layers(case.base)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(base), case.base)
    unstacked = loss_and_grad(case._replace(base=base), adapter, batch)
    assert_close(loss_and_grad(case, adapter, batch), unstacked, 1e-5)


def test_loss_is_a_direct_transcription_of_the_formula(case):
    """Sample by sample with whole sequences: shifted positions, end of sequence, a mean over all tokens."""
    adapter, pairs = random_adapter(case.config), random_pairs()
    (loss, _), _ = loss_and_grad(case, adapter, make_update(pairs, OURS))
    kls, distances = [], []
    for pair in pairs:
        kl, distance = per_position(case, adapter, pair)
        count = len(pair.response_ids) + 1
        kls += list(kl[-count:])
        distances += list(distance[-count:])
    np.testing.assert_allclose(loss, np.mean(kls) + 2.44 * np.mean(distances), rtol=1e-5)


def test_published_variant_is_a_direct_transcription_of_its_formula(case):
    """Unshifted response positions, no end of sequence, the mean of each sample's own mean."""
    adapter, pairs = random_adapter(case.config), random_pairs()
    (loss, _), _ = loss_and_grad(case, adapter, make_update(pairs, PUBLISHED))
    means = []
    for pair in pairs:
        kl, distance = per_position(case, adapter, pair)
        count = len(pair.response_ids)
        means.append(np.mean(kl[-count:]) + 2.44 * np.mean(distance[-count:]))
    np.testing.assert_allclose(loss, np.mean(means), rtol=1e-5)


def test_shared_positions_add_the_tail_to_the_hidden_loss_alone(case):
    adapter, pairs = random_adapter(case.config), random_pairs()
    (_, parts), _ = loss_and_grad(case, adapter, make_update(pairs, SHARED))
    (_, response), _ = loss_and_grad(case, adapter, make_update(pairs, OURS))
    np.testing.assert_allclose(parts["logit_loss"], response["logit_loss"], rtol=1e-5)
    distances = [list(per_position(case, adapter, pair)[1][-(3 + len(pair.response_ids)) :]) for pair in pairs]
    np.testing.assert_allclose(parts["hidden_loss"], 2.44 * np.mean(np.concatenate(distances)), rtol=1e-5)


def per_position(case, adapter, pair: Pair):
    """KL and hidden distance at the student's positions, aligned with the teacher's from the right, in numpy."""
    decoder = nnx.merge(case.graph, case.base)
    teacher_ids, student_ids = (p + pair.response_ids for p in (pair.prompts.teacher_ids, pair.prompts.student_ids))
    sides = []
    for ids, lora in ((teacher_ids, None), (student_ids, scaled_adapter(adapter, SPEC.scale))):
        out = tiny.apply(decoder, np.array([ids], np.int32), adapter=lora)
        logits = np.asarray(decoder.logits(out.final_BPD), np.float64)[0]
        probability = np.exp(logits - logits.max(-1, keepdims=True))
        sides.append((probability / probability.sum(-1, keepdims=True), np.asarray(out.inputs_LBQD, np.float64)[:, 0]))
    (p, h_t), (q, h_s) = sides
    p, h_t = p[-len(q) :], h_t[:, -len(q) :]
    unit = [h / np.linalg.norm(h, axis=-1, keepdims=True) for h in (h_t, h_s)]
    return (p * np.log(p / q)).sum(-1), ((unit[0] - unit[1]) ** 2).sum(-1).mean(0)


def test_hidden_beta_of_the_authors_is_a_mean_over_features(case):
    """beta * mean over layers and features of (u_t - u_s)^2 is beta / D * mean_l ||u_t - u_s||^2."""
    adapter, pairs = random_adapter(case.config), random_pairs(1)
    beta, width = 100.0, case.config.width
    objective = distillation(hidden_weight=beta / width)
    (_, parts), _ = loss_and_grad(case, adapter, make_update(pairs, OURS), objective)
    distance = per_position(case, adapter, pairs[0])[1][-(len(pairs[0].response_ids) + 1) :]
    np.testing.assert_allclose(parts["hidden_loss"], beta * np.mean(distance / width), rtol=1e-5)


def test_adapter_equals_merged_weights(case):
    adapter = random_adapter(case.config)
    tokens = tiny.random_tokens(2, 9)
    plain = nnx.merge(case.graph, case.base)
    merged = nnx.merge(case.graph, merge_adapter(case.base, adapter, SPEC.scale))
    ours = tiny.forward(plain, tokens, adapter=scaled_adapter(adapter, SPEC.scale)).final_BPD
    np.testing.assert_allclose(ours, tiny.forward(merged, tokens).final_BPD, atol=2e-5)
    assert np.abs(ours - tiny.forward(plain, tokens).final_BPD).max() > 1e-2


def take_steps(case, dropout: float, seeds: list[int], kind: str = "tune_without_rule", steps: int = 2):
    """Updates of a member for each seed, whose adapter and pairs follow from the seed too."""
    objective = OBJECTIVES[kind]
    settings = settings_of(case, objective, dropout=dropout)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    adapters_M = stack([random_adapter(case.config, seed) for seed in seeds])
    # One shape for all members: what padding there is must not matter.
    shape = batch_shape(map(pairs_of, seeds), 2, OURS, NO_PREFIX)
    batch = stack([as_update(collate(pairs_of(seed), 2, shape, OURS, eos=257), 2) for seed in seeds])
    signals = None
    if objective.has_teacher:
        signals = teacher_signals(case.graph, case.base, None, batch, None, SPEC.scale)
    state = init_state(adapters_M, optimizer)
    for _ in range(steps):
        state, metrics = train_step(
            state,
            case.base,
            (GroupUpdate(batch, signals, None),),
            jnp.array(seeds, jnp.uint32),
            settings=settings,
            optimizer=optimizer,
        )
    return state, metrics


def pairs_of(seed: int) -> list[Pair]:
    """A member's pairs; those of odd seeds are longer, so that they set the shape of all."""
    first, *others = random_pairs(4, seed)
    return [dataclasses.replace(first, response_ids=first.response_ids + (7,) * (9 * (seed % 2))), *others]


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_step_counts_learns_and_leaves_the_base_alone(case):
    before = jax.tree.map(np.array, case.base)
    state, metrics = take_steps(case, 0.0, [1])
    assert state.step.tolist() == [2]
    first = loss_and_grad(case, random_adapter(case.config, 1), make_update(pairs_of(1), OURS), TUNE_WITHOUT_RULE)
    assert float(metrics["loss"][0]) < float(first[0][0])
    jax.tree.map(np.testing.assert_array_equal, before, case.base)


def test_dropout_follows_from_the_seed():
    case = make_case()
    same = [float(take_steps(case, 0.5, [3])[1]["loss"][0]) for _ in range(2)]
    without = float(take_steps(case, 0.0, [3])[1]["loss"][0])
    assert same[0] == same[1] != without


@pytest.mark.parametrize("kind", ["distill", "tune_without_rule"])
def test_members_side_by_side_equal_members_alone(case, kind):
    """Loss, gradient (its norm, and Adam's first moments of it) and dropout of each seed, to 1e-5 relative."""
    together, metrics = take_steps(case, 0.3, [3, 4, 5], kind, steps=1)
    for number, seed in enumerate([3, 4, 5]):
        alone, mine = take_steps(case, 0.3, [seed], kind, steps=1)
        assert_close(take_member(metrics, number), take_member(mine), 1e-5)
        assert_close(take_member(together.moments, number), take_member(alone.moments), 1e-5)


def test_signals_and_losses_stay_float32_in_a_bfloat16_model():
    case = make_case(dtype=jnp.bfloat16)
    (loss, _), gradient = loss_and_grad(case, random_adapter(case.config), make_update(random_pairs(), OURS))
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    exact, _ = loss_and_grad(make_case(), random_adapter(case.config), make_update(random_pairs(), OURS))
    np.testing.assert_allclose(loss, exact[0], rtol=0.1)
