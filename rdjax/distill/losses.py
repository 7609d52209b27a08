"""The losses of rule distillation, per position and without hidden reduction (METHOD.md, arXiv 2311.08883).

All are computed in float32 whatever comes in; the reduction is the caller's, by weights.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rdjax.models.rows import dot_rows, scale_rows

# Positions of a batch whose logits stand in memory at once, however long the responses are: at a vocabulary of 128,256
# the logits of one model take 0.26 GB in float32, and those of teacher, student and gradient a few times that.
LOGIT_POSITIONS = 512
NORM_EPSILON = 1e-12  # torch.nn.functional.normalize's


def kl_divergence(teacher_BPV: jax.Array, student_BPV: jax.Array, temperature: float) -> jax.Array:
    """T^2 * KL(p_t || p_s) of the softmax at temperature T, nats, float32 [B, P].

    Args:
      teacher_BPV, student_BPV: logits.
      temperature: T; T^2 keeps the size of the gradient (Hinton et al. 2015, arXiv 1503.02531).
    """
    teacher, student = _log_softmax(teacher_BPV, temperature), _log_softmax(student_BPV, temperature)
    return temperature**2 * dot_rows(jnp.exp(teacher), teacher - student)


def soft_cross_entropy(teacher_BPV: jax.Array, student_BPV: jax.Array, temperature: float) -> jax.Array:
    """T^2 * -sum_v p_t log p_s, float32 [B, P]: the KL divergence plus the teacher's entropy, same gradient."""
    teacher, student = _log_softmax(teacher_BPV, temperature), _log_softmax(student_BPV, temperature)
    return -(temperature**2) * dot_rows(jnp.exp(teacher), student)


def cross_entropy(student_BPV: jax.Array, labels_BP: jax.Array) -> jax.Array:
    """-log p_s(label), nats, float32 [B, P]."""
    return optax.softmax_cross_entropy_with_integer_labels(student_BPV.astype(jnp.float32), labels_BP)


def hidden_distance(teacher_LBQD: jax.Array, student_LBQD: jax.Array) -> jax.Array:
    """||u_t - u_s||^2 of the normalised hidden states u(h) = h / ||h||, float32 [L, B, Q].

    The authors' beta times the mean over features is its mean over layers times beta / D; it also equals
    2 * (1 - cos(h_t, h_s)). Zero rows count as zero vectors and have a zero gradient.
    """
    difference = _normalise(teacher_LBQD) - _normalise(student_LBQD)
    return dot_rows(difference, difference)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_in_chunks(loss: Callable[..., jax.Array], student_BPD: jax.Array, constant: Any, others: Any) -> jax.Array:
    """`loss` summed over chunks of at most `LOGIT_POSITIONS` positions (one of every row at least).

    The gradient of a chunk is taken beside its value: nothing of the size of the vocabulary outlives it, and nothing is
    computed twice (as in Liger Kernel's fused linear cross-entropy, arXiv 2410.10989).

    Args:
      loss: (student's states [B, p, D], `constant`, a chunk of `others`) -> a sum over the chunk, float32 []; the same
        object from call to call, for it is static.
      student_BPD: alone has a gradient.
      constant: arrays that every chunk needs whole.
      others: a tree of arrays [B, P, ...]; zeros pad them, and must then add nothing.
    """
    return jax.lax.scan(
        lambda total, chunk: (total + loss(chunk[0], constant, chunk[1]), None),
        jnp.zeros(()),
        _chunks((student_BPD, others)),
    )[0]


def _sum_and_gradient(loss, student_BPD, constant, others):
    def one(total, chunk):
        value, gradient_BpD = jax.value_and_grad(loss)(chunk[0], constant, chunk[1])
        return total + value, gradient_BpD

    total, gradient_NBpD = jax.lax.scan(one, jnp.zeros(()), _chunks((student_BPD, others)))
    B, P, D = student_BPD.shape
    return total, gradient_NBpD.swapaxes(0, 1).reshape(B, -1, D)[:, :P]


sum_in_chunks.defvjp(
    _sum_and_gradient, lambda loss, gradient_BPD, g: ((g * gradient_BPD).astype(gradient_BPD.dtype), None, None)
)


def _chunks(tree: Any) -> Any:
    """Arrays [B, P, ...] as [N, B, p, ...], padded with zeros; rows stay together, for a mesh shares them out."""
    B, P = jax.tree.leaves(tree)[0].shape[:2]
    count = math.ceil(P / max(LOGIT_POSITIONS // B, 1))
    width = math.ceil(P / count)

    def split(leaf: jax.Array) -> jax.Array:
        padded = jnp.pad(leaf, ((0, 0), (0, count * width - P), *((0, 0),) * (leaf.ndim - 2)))
        return padded.reshape(B, count, width, *leaf.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


def _log_softmax(logits_BPV: jax.Array, temperature: float) -> jax.Array:
    return jax.nn.log_softmax(logits_BPV.astype(jnp.float32) / temperature, axis=-1)


def _normalise(hidden: jax.Array) -> jax.Array:
    hidden = hidden.astype(jnp.float32)
    squares = jnp.sum(hidden**2, axis=-1, keepdims=True)
    # The square root has no gradient at zero: zero rows take the other branch, on a number that is safe.
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return scale_rows(hidden, 1 / jnp.maximum(norm, NORM_EPSILON))
