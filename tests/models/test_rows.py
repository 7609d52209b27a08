"""Products along rows, and their gradients against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np

from rdjax.models.rows import dot_rows, multiply, scale_rows

RANDOM = np.random.RandomState(0)
X, Y = RANDOM.standard_normal((2, 3, 5, 7)).astype(np.float32)
SCALE = RANDOM.standard_normal((3, 5, 1)).astype(np.float32)


def test_dot_rows_is_an_inner_product():
    np.testing.assert_allclose(dot_rows(X, Y), (X.astype(np.float64) * Y).sum(axis=-1), atol=1e-6)


def test_scaled_rows_have_the_gradient_of_a_product():
    def loss(scale):
        return lambda x, y: jnp.sum(jnp.sin(scale(x, y)) * Y)

    ours, plain = (jax.grad(loss(scale), argnums=(0, 1))(X, SCALE) for scale in (scale_rows, jnp.multiply))
    np.testing.assert_array_equal(scale_rows(X, SCALE), X * SCALE)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-6), ours, plain)
    assert ours[1].shape == SCALE.shape


def test_a_number_is_not_rounded_to_the_dtype_of_what_it_multiplies():
    """0.22 is no bfloat16 number: rounded first, all products would be 0.12 % too small."""
    x = jnp.asarray(np.random.RandomState(0).standard_normal(1000), jnp.bfloat16)
    expected = (np.asarray(x, np.float32) * np.float32(0.22)).astype(jnp.bfloat16)
    assert (np.asarray(multiply(x, 0.22)) == expected).all()
    assert (np.asarray(x * 0.22) != expected).mean() > 0.1
