"""The losses of rule distillation, per position and without hidden reduction (METHOD.md, arXiv 2311.08883).

All are computed in float32 whatever comes in; the reduction is the caller's, by weights.
"""

import jax
import jax.numpy as jnp
import optax

NORM_EPSILON = 1e-12  # torch.nn.functional.normalize's


def kl_divergence(teacher_BPV: jax.Array, student_BPV: jax.Array, temperature: float) -> jax.Array:
    """T^2 * KL(p_t || p_s) of the softmax at temperature T, nats, float32 [B, P].

    Args:
      teacher_BPV, student_BPV: logits.
      temperature: T; T^2 keeps the size of the gradient (Hinton et al. 2015, arXiv 1503.02531).
    """
    teacher, student = _log_softmax(teacher_BPV, temperature), _log_softmax(student_BPV, temperature)
    return temperature**2 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def soft_cross_entropy(teacher_BPV: jax.Array, student_BPV: jax.Array, temperature: float) -> jax.Array:
    """T^2 * -sum_v p_t log p_s, float32 [B, P]: the KL divergence plus the teacher's entropy, same gradient."""
    teacher, student = _log_softmax(teacher_BPV, temperature), _log_softmax(student_BPV, temperature)
    return -(temperature**2) * jnp.sum(jnp.exp(teacher) * student, axis=-1)


def cross_entropy(student_BPV: jax.Array, labels_BP: jax.Array) -> jax.Array:
    """-log p_s(label), nats, float32 [B, P]."""
    return optax.softmax_cross_entropy_with_integer_labels(student_BPV.astype(jnp.float32), labels_BP)


def hidden_distance(teacher_LBQD: jax.Array, student_LBQD: jax.Array) -> jax.Array:
    """||u_t - u_s||^2 of the normalised hidden states u(h) = h / ||h||, float32 [L, B, Q].

    The authors' beta times the mean over features is its mean over layers times beta / D; it also equals
    2 * (1 - cos(h_t, h_s)). Zero rows count as zero vectors and have a zero gradient.
    """
    difference = _normalise(teacher_LBQD) - _normalise(student_LBQD)
    return jnp.sum(difference**2, axis=-1)


def _log_softmax(logits_BPV: jax.Array, temperature: float) -> jax.Array:
    return jax.nn.log_softmax(logits_BPV.astype(jnp.float32) / temperature, axis=-1)


def _normalise(hidden: jax.Array) -> jax.Array:
    hidden = hidden.astype(jnp.float32)
    squares = jnp.sum(hidden**2, axis=-1, keepdims=True)
    # The square root has no gradient at zero: zero rows take the other branch, on a number that is safe.
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return hidden / jnp.maximum(norm, NORM_EPSILON)
