"""Properties of the losses, per position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdjax.distillation import losses
from rdjax.distillation.losses import (
    cross_entropy,
    hidden_distance,
    hidden_l1_distance,
    js_divergence,
    kl_divergence,
    reverse_kl_divergence,
    soft_cross_entropy,
    sum_in_chunks,
)


def normal(seed: int, *shape: int, scale: float = 1.0):
    return jnp.asarray(scale * np.random.RandomState(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_kl_is_its_definition(temperature):
    teacher, student = normal(0, 2, 3, 7, scale=3), normal(1, 2, 3, 7, scale=3)
    p = np.exp(np.asarray(teacher, np.float64) / temperature)
    q = np.exp(np.asarray(student, np.float64) / temperature)
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    expected = temperature**2 * (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(kl_divergence(teacher, student, temperature), expected, rtol=1e-4, atol=1e-6)


def probabilities(logits, temperature: float) -> np.ndarray:
    powers = np.exp(np.asarray(logits, np.float64) / temperature)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_reverse_kl_and_jsd_are_their_definitions(temperature):
    teacher, student = normal(0, 2, 3, 7, scale=3), normal(1, 2, 3, 7, scale=3)
    p, q = probabilities(teacher, temperature), probabilities(student, temperature)
    reverse = temperature**2 * (q * np.log(q / p)).sum(-1)
    np.testing.assert_allclose(reverse_kl_divergence(teacher, student, temperature), reverse, rtol=1e-4, atol=1e-6)
    m = (p + q) / 2
    both = temperature**2 * ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
    np.testing.assert_allclose(js_divergence(teacher, student, temperature), both, rtol=1e-4, atol=1e-6)


def test_reverse_kl_over_the_likeliest_tokens_is_a_part_of_its_sum():
    teacher, student = normal(0, 2, 3, 7, scale=3), normal(1, 2, 3, 7, scale=3)
    p, q = probabilities(teacher, 1.0), probabilities(student, 1.0)
    likeliest = np.argsort(-q, axis=-1)[..., :2]
    expected = np.take_along_axis(q * np.log(q / p), likeliest, axis=-1).sum(-1)
    np.testing.assert_allclose(reverse_kl_divergence(teacher, student, 1.0, top_k=2), expected, rtol=1e-4, atol=1e-6)
    exact = reverse_kl_divergence(teacher, student, 1.0)
    np.testing.assert_allclose(reverse_kl_divergence(teacher, student, 1.0, top_k=256), exact, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_top_k_reverse_kl_is_biased():
    """It is not zero where teacher and student agree (arXiv 2605.11182); that of the exact one is."""
    logits = normal(0, 1, 1, 7, scale=1)
    exact = jax.grad(lambda s: reverse_kl_divergence(logits, s, 1.0).sum())(logits)
    np.testing.assert_allclose(exact, 0, atol=1e-6)
    top_k = jax.grad(lambda s: reverse_kl_divergence(logits, s, 1.0, top_k=2).sum())(logits)
    assert np.abs(top_k).max() > 1e-2


@pytest.mark.parametrize("divergence", [kl_divergence, reverse_kl_divergence, js_divergence])
def test_divergences_are_zero_with_zero_gradient_on_equal_logits(divergence):
    logits = normal(0, 2, 3, 7, scale=5)
    value, gradient = jax.value_and_grad(lambda s: divergence(logits, s, 1.0).sum())(logits)
    assert abs(float(value)) < 1e-6
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_entropy_and_kl_have_the_same_gradient():
    teacher, student = normal(0, 2, 3, 7), normal(1, 2, 3, 7)
    kl = jax.grad(lambda s: kl_divergence(teacher, s, 2.0).sum())(student)
    entropy = jax.grad(lambda s: soft_cross_entropy(teacher, s, 2.0).sum())(student)
    np.testing.assert_allclose(kl, entropy, atol=1e-6)


def test_losses_are_float32_under_bfloat16_inputs():
    """A difference of logits that bfloat16 arithmetic would round to a KL of zero."""
    teacher = jnp.array([[[8.0, 8.0, 0.0]]], jnp.bfloat16)
    student = jnp.array([[[8.0, 8.125, 0.0]]], jnp.bfloat16)
    value = kl_divergence(teacher, student, 1.0)
    assert value.dtype == jnp.float32
    exact = kl_divergence(teacher.astype(jnp.float32), student.astype(jnp.float32), 1.0)
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    assert 1e-3 < float(value[0, 0]) < 3e-3
    assert cross_entropy(student, jnp.zeros((1, 1), jnp.int32)).dtype == jnp.float32
    assert hidden_distance(teacher[None], student[None]).dtype == jnp.float32


def test_hidden_distance_is_two_times_one_minus_cosine():
    teacher, student = normal(0, 3, 2, 4, 16), normal(1, 3, 2, 4, 16)
    dot = (teacher * student).sum(-1)
    cosine = dot / jnp.linalg.norm(teacher, axis=-1) / jnp.linalg.norm(student, axis=-1)
    np.testing.assert_allclose(hidden_distance(teacher, student), 2 * (1 - cosine), rtol=1e-5, atol=1e-6)


def test_hidden_distance_does_not_see_the_size_of_a_row():
    teacher, student = normal(0, 3, 2, 4, 16), normal(1, 3, 2, 4, 16)
    np.testing.assert_allclose(hidden_distance(teacher, 7 * student), hidden_distance(teacher, student), rtol=1e-5)


def test_hidden_distance_is_finite_on_zero_rows():
    teacher = normal(0, 2, 1, 3, 8).at[:, :, 0].set(0)
    student = normal(1, 2, 1, 3, 8).at[:, :, :2].set(0)
    value, gradient = jax.value_and_grad(lambda s: hidden_distance(teacher, s).sum())(student)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # Both zero: no distance. One zero: the other's unit length.
    np.testing.assert_allclose(hidden_distance(teacher, student)[0, 0, :2], [0.0, 1.0], rtol=1e-6)


def test_the_l1_distance_is_its_definition():
    teacher, student = normal(0, 3, 2, 4, 16), normal(1, 3, 2, 4, 16)
    expected = np.abs(teacher - student).sum(-1) / np.abs(teacher).sum(-1)
    np.testing.assert_allclose(hidden_l1_distance(teacher, student), expected, rtol=1e-5)


def test_cross_entropy_is_minus_log_probability():
    logits, labels = normal(0, 1, 2, 5), jnp.array([[3, 0]])
    probabilities = jax.nn.softmax(logits)
    expected = [-np.log(probabilities[0, 0, 3]), -np.log(probabilities[0, 1, 0])]
    np.testing.assert_allclose(cross_entropy(logits, labels)[0], expected, rtol=1e-5)


def chunk_loss(student_BPD, head_DV, others):
    teacher_BPD, weight_BP = others
    return jnp.sum(kl_divergence(teacher_BPD @ head_DV, student_BPD @ head_DV, 2.0) * weight_BP)


@pytest.fixture
def states():
    random = np.random.RandomState(0)
    student, teacher = random.standard_normal((2, 3, 11, 8)).astype(np.float32)
    weights = random.rand(3, 11).astype(np.float32)
    return jnp.asarray(student), jnp.asarray(random.standard_normal((8, 50)), jnp.float32), (teacher, weights)


@pytest.mark.parametrize("positions", [1, 3, 6, 12, 32, 33, 1000])
def test_chunks_sum_to_the_whole_with_its_gradient(states, positions, monkeypatch):
    student, head, others = states
    monkeypatch.setattr(losses, "LOGIT_POSITIONS", positions)
    whole = jax.value_and_grad(lambda student: 3 * chunk_loss(student, head, others))(student)
    ours = jax.value_and_grad(lambda student: 3 * sum_in_chunks(chunk_loss, student, head, others))(student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, whole)
    np.testing.assert_allclose(sum_in_chunks(chunk_loss, student, head, others), whole[0] / 3, rtol=1e-5)


def test_logits_of_all_positions_never_stand_in_memory(states, monkeypatch):
    """The compiled value and gradient hold [3, 4, 50] at most; without chunks they would hold [3, 11, 50]."""
    student, head, others = states
    monkeypatch.setattr(losses, "LOGIT_POSITIONS", 12)

    def program(loss):
        compute = jax.jit(jax.value_and_grad(lambda student, head: loss(chunk_loss, student, head, others)))
        return compute.lower(student, head).compile().as_text()

    assert "[3,11,50]" not in program(sum_in_chunks)
    assert "[3,4,50]" in program(sum_in_chunks)
    assert "11,50]" in program(lambda loss, *rest: loss(*rest))


def test_members_side_by_side_have_chunks_of_their_own(states, monkeypatch):
    student, head, others = states
    monkeypatch.setattr(losses, "LOGIT_POSITIONS", 6)
    both = jnp.stack([student, 2 * student])
    ours = jax.vmap(jax.grad(lambda student: sum_in_chunks(chunk_loss, student, head, others)))(both)
    for number in range(2):
        alone = jax.grad(lambda student: chunk_loss(student, head, others))(both[number])
        np.testing.assert_allclose(ours[number], alone, rtol=1e-5, atol=1e-6)
