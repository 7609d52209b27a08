"""Products along rows, and their gradients against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np

from rdjax.models.rows import dot_rows, scale_rows

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
