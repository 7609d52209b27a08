"""The gated delta rule: by chunks as token by token, in parts as at once, and blind to padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdjax.models.delta_net import by_chunks, convolve, delta_rule, invert_triangular, one_token, prepend_inputs

ROWS, HEADS, KEY, VALUE = 2, 3, 8, 5
LONG = 150  # three chunks, the last of which is not full


def random_inputs(tokens: int, seed: int = 0):
    """Queries, keys, values, decays, strengths and a memory, heads first; decays from hardly any to almost all."""
    random = np.random.RandomState(seed)
    q, k = (random.standard_normal((ROWS, HEADS, tokens, KEY)) for _ in range(2))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    values, memory = (
        random.standard_normal((ROWS, HEADS, tokens, VALUE)),
        random.standard_normal((ROWS, HEADS, KEY, VALUE)),
    )
    decay, strength = -random.gamma(0.3, 2.0, (ROWS, HEADS, tokens)), random.uniform(0, 1, (ROWS, HEADS, tokens))
    return [jnp.asarray(x, jnp.float32) for x in (q, k, values, decay, strength, memory)]


def token_by_token(*inputs):
    """The recurrence; a scan, which compiles one token."""
    *read, memory = inputs

    def step(memory, token):
        output, memory = one_token(*(x[:, :, None] for x in token), memory)
        return memory, output[:, :, 0]

    memory, outputs = jax.lax.scan(step, memory, tuple(jnp.moveaxis(x, 2, 0) for x in read))
    return jnp.moveaxis(outputs, 0, 2), memory


@pytest.mark.parametrize("tokens", [2, 64, LONG])
def test_chunks_are_the_recurrence(tokens):
    inputs = random_inputs(tokens)
    for ours, expected in zip(jax.jit(by_chunks)(*inputs), jax.jit(token_by_token)(*inputs), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 16, 64])
def test_triangular_matrices_are_inverted(tokens):
    """Ignores the diagonal and what is above it; keys that are all alike are the worst case."""
    random = np.random.RandomState(tokens)
    for system in (random.standard_normal((2, 3, tokens, tokens)) * 0.3, np.ones((1, 1, tokens, tokens))):
        expected = np.linalg.inv(np.tril(system, -1) + np.eye(tokens))
        ours = jax.jit(invert_triangular)(jnp.asarray(system, jnp.float32))
        np.testing.assert_allclose(ours, expected, atol=2e-6 * np.abs(expected).max())


def test_no_solver_that_waits_for_threads_is_called():
    """XLA's triangular solver on CPUs: two at once can wait for each other for ever."""
    text = jax.jit(by_chunks).lower(*random_inputs(LONG)).compile().as_text()
    assert "trsm" not in text
    solver = jax.jit(lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True))
    assert "trsm" in solver.lower(jnp.eye(4), jnp.ones((4, 1))).compile().as_text(), "its name is still this one"


def test_gradients_of_chunks_are_those_of_the_recurrence():
    inputs = random_inputs(70)

    def loss(rule, *inputs):
        output, memory = rule(*inputs)
        return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.sin(memory))

    ours, expected = (
        jax.jit(jax.grad(lambda *inputs, rule=rule: loss(rule, *inputs), argnums=range(6)))(*inputs)
        for rule in (by_chunks, token_by_token)
    )
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("first", [1, 63, 64, 100])
def test_a_sequence_may_be_read_in_parts(first):
    *inputs, memory = random_inputs(LONG)
    whole, last = by_chunks(*inputs, memory)
    parts = []
    for at in (slice(0, first), slice(first, LONG)):
        q, k, v, decay, strength = inputs
        part, memory = by_chunks(q[:, :, at], k[:, :, at], v[:, :, at], decay[..., at], strength[..., at], memory)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=2), whole, atol=1e-5)
    np.testing.assert_allclose(memory, last, atol=1e-5)


def test_a_key_head_serves_neighbouring_value_heads():
    random = np.random.RandomState(1)
    q, k = (random.standard_normal((1, 4, 2, KEY)).astype(np.float32) for _ in range(2))
    v = random.standard_normal((1, 4, 6, VALUE)).astype(np.float32)
    gates, memory = jnp.full((1, 4, 6), 0.5), jnp.zeros((1, 6, KEY, VALUE))
    mixed, _ = delta_rule(q, k, v, -gates, gates, memory)
    for head in range(6):
        at = slice(head // 3, head // 3 + 1)
        alone, _ = delta_rule(
            q[:, :, at], k[:, :, at], v[:, :, head : head + 1], -gates[..., :1], gates[..., :1], memory[:, :1]
        )
        np.testing.assert_allclose(mixed[:, :, head], alone[:, :, 0], atol=1e-6)


def test_the_convolution_reads_what_stands_before_the_first_real_token():
    before, tokens = np.arange(6.0).reshape(1, 3, 2), 10 + np.arange(8.0).reshape(1, 4, 2)
    plain = prepend_inputs(before, tokens[:, 2:], None)
    padded = prepend_inputs(before, tokens, np.array([2]))
    np.testing.assert_array_equal(padded[:, 2:], plain)
    np.testing.assert_array_equal(padded[:, :2], 0)
    np.testing.assert_array_equal(prepend_inputs(before, tokens, np.array([4]))[:, 4:], before)
    kernel = np.array([[[0.0, 0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0, 0.0]]])
    read = convolve(plain, kernel)
    np.testing.assert_allclose(read[0, :, 0], jax.nn.silu(tokens[0, 2:, 0]), rtol=1e-6)
    np.testing.assert_allclose(read[0, :, 1], jax.nn.silu(before[0, :2, 1]), rtol=1e-6)
