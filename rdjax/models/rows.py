"""Products along the rows of an array, in float32, as norms, softmax and losses take them."""

import jax
import jax.numpy as jnp


def dot_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """The inner product of every two rows, [..., D] and [..., D] to [...].

    CPUs multiply and add in one pass where a product comes in this form; summed up by `jnp.sum` it is written first.
    """
    return jnp.einsum("...d,...d->...", x, y, precision="highest")


@jax.custom_vjp
def scale_rows(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`x` [..., D] times one number a row, [..., 1]."""
    return x * scale


# JAX's own gradient of the scale sums up the product.
scale_rows.defvjp(lambda x, scale: (x * scale, (x, scale)), lambda xs, g: (g * xs[1], dot_rows(g, xs[0])[..., None]))
