"""Computes the losses of rule distillation (arXiv 2311.08883) and names the terms that an objective can have.

The first functions give one number a position; the terms reduce them by the batch's weights, which already hold the
mean. All of them compute in float32, whatever the model's dtype.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rdjax.data.batches import Batch
from rdjax.distillation.forward import Signals
from rdjax.models.decoder import Head, logits
from rdjax.models.rows import dot_rows, scale_rows

# Positions whose logits are in memory at once, however long the responses are: at a vocabulary of 128,256 the logits of
# one model take 0.26 GB in float32, and those of teacher, student and gradient a few times that.
LOGIT_POSITIONS = 512
NORM_EPSILON = 1e-12  # torch.nn.functional.normalize's


def kl_divergence(teacher_BPV: jax.Array, student_BPV: jax.Array, temperature: float) -> jax.Array:
    """Computes T^2 * KL(p_t || p_s) of the softmax at temperature T, nats, float32 [B, P].

    Args:
      teacher_BPV, student_BPV: logits.
      temperature: T; T^2 keeps the size of the gradient (Hinton et al. 2015, arXiv 1503.02531).
    """
    teacher, student = _log_softmax(teacher_BPV, temperature), _log_softmax(student_BPV, temperature)
    return temperature**2 * dot_rows(jnp.exp(teacher), teacher - student)


def reverse_kl_divergence(
    teacher_BPV: jax.Array, student_BPV: jax.Array, temperature: float, top_k: int = 0
) -> jax.Array:
    """Computes T^2 * KL(p_s || p_t), nats, float32 [B, P].

    Args:
      top_k: sums over this many of the student's most likely tokens alone (0: over all), as OPCD does (arXiv
        2602.12275); the gradient is then biased (arXiv 2605.11182).
    """
    teacher, student = _log_softmax(teacher_BPV, temperature), _log_softmax(student_BPV, temperature)
    if top_k:
        student, chosen = jax.lax.top_k(student, min(top_k, student.shape[-1]))
        teacher = jnp.take_along_axis(teacher, chosen, axis=-1)
    return temperature**2 * dot_rows(jnp.exp(student), student - teacher)


def js_divergence(teacher_BPV: jax.Array, student_BPV: jax.Array, temperature: float) -> jax.Array:
    """Computes T^2 * (KL(p_t || m) + KL(p_s || m)) / 2 with m = (p_t + p_s) / 2, nats, float32 [B, P]."""
    teacher, student = _log_softmax(teacher_BPV, temperature), _log_softmax(student_BPV, temperature)
    mean = jnp.logaddexp(teacher, student) - math.log(2)
    both = dot_rows(jnp.exp(teacher), teacher - mean) + dot_rows(jnp.exp(student), student - mean)
    return temperature**2 * both / 2


def soft_cross_entropy(teacher_BPV: jax.Array, student_BPV: jax.Array, temperature: float) -> jax.Array:
    """Computes T^2 * -sum_v p_t log p_s, float32 [B, P]: the KL divergence plus the teacher's entropy."""
    teacher, student = _log_softmax(teacher_BPV, temperature), _log_softmax(student_BPV, temperature)
    return -(temperature**2) * dot_rows(jnp.exp(teacher), student)


def cross_entropy(student_BPV: jax.Array, labels_BP: jax.Array) -> jax.Array:
    """Computes -log p_s(label), nats, float32 [B, P]."""
    return optax.softmax_cross_entropy_with_integer_labels(student_BPV.astype(jnp.float32), labels_BP)


def hidden_distance(teacher_LBQD: jax.Array, student_LBQD: jax.Array) -> jax.Array:
    """Computes ||u_t - u_s||^2 of the normalised hidden states u(h) = h / ||h||, float32 [L, B, Q].

    It equals 2 * (1 - cos(h_t, h_s)). The authors' loss, beta times a mean over features and layers, is beta / D times
    the mean of this over layers. Zero rows count as zero vectors and have a zero gradient.
    """
    difference = _normalise(teacher_LBQD) - _normalise(student_LBQD)
    return dot_rows(difference, difference)


def hidden_l1_distance(teacher_LBQD: jax.Array, student_LBQD: jax.Array) -> jax.Array:
    """Computes ||h_t - h_s||_1 / ||h_t||_1, float32 [L, B, Q] (Deep Context Distillation, arXiv 2503.08727)."""
    teacher, student = teacher_LBQD.astype(jnp.float32), student_LBQD.astype(jnp.float32)
    norm = jnp.sum(jnp.abs(teacher), axis=-1)
    return jnp.sum(jnp.abs(teacher - student), axis=-1) / jnp.maximum(norm, NORM_EPSILON)


def _log_softmax(logits_BPV: jax.Array, temperature: float) -> jax.Array:
    """Computes log-probabilities at a temperature, float32."""
    return jax.nn.log_softmax(logits_BPV.astype(jnp.float32) / temperature, axis=-1)


def _normalise(hidden: jax.Array) -> jax.Array:
    """Divides vectors by their norm, float32; zero vectors stay zero."""
    hidden = hidden.astype(jnp.float32)
    squares = jnp.sum(hidden**2, axis=-1, keepdims=True)
    # The square root has no gradient at zero: zero rows take the other branch, with a harmless number.
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return scale_rows(hidden, 1 / jnp.maximum(norm, NORM_EPSILON))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_in_chunks(loss: Callable[..., jax.Array], student_BPD: jax.Array, constant: Any, others: Any) -> jax.Array:
    """Sums `loss` over chunks of at most `LOGIT_POSITIONS` positions (but at least one of every row).

    The gradient of a chunk is computed together with its value, so no array with a vocabulary axis is kept for the
    backward pass and nothing is computed twice (as in Liger Kernel's fused linear cross-entropy, arXiv 2410.10989).

    Args:
      loss: (student's states [B, p, D], `constant`, a chunk of `others`) -> the sum over the chunk, float32 [].
      student_BPD: the only argument with a gradient.
      constant: arrays that every chunk needs whole.
      others: a tree of arrays [B, P, ...]. The last chunk is padded with zeros, for which `loss` must be 0.
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

    total, gradient_nBpD = jax.lax.scan(one, jnp.zeros(()), _chunks((student_BPD, others)))
    B, P, D = student_BPD.shape
    return total, gradient_nBpD.swapaxes(0, 1).reshape(B, -1, D)[:, :P]


sum_in_chunks.defvjp(
    _sum_and_gradient, lambda loss, gradient_BPD, g: ((g * gradient_BPD).astype(gradient_BPD.dtype), None, None)
)


def _chunks(tree: Any) -> Any:
    """Splits arrays [B, P, ...] into chunks [n, B, p, ...], padded with zeros.

    Every chunk has all rows, so that a mesh keeps its rows.
    """
    B, P = jax.tree.leaves(tree)[0].shape[:2]
    count = math.ceil(P / max(LOGIT_POSITIONS // B, 1))
    width = math.ceil(P / count)

    def split(leaf: jax.Array) -> jax.Array:
        padded = jnp.pad(leaf, ((0, 0), (0, count * width - P), *((0, 0),) * (leaf.ndim - 2)))
        return padded.reshape(B, count, width, *leaf.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


class LossInputs(NamedTuple):
    """Holds what a term can read of a micro-batch.

    Attributes:
      teacher: None where the objective has no teacher.
      student: of the side that is trained.
      batch: labels and weights of the positions.
      head: turns final states into logits; shared by both.
      temperature: of the terms that compare distributions.
      top_k: of the reverse KL divergence.
      hidden_layers: those whose inputs are compared; empty: all.
    """

    teacher: Signals | None
    student: Signals
    batch: Batch
    head: Head
    temperature: float
    top_k: int = 0
    hidden_layers: tuple[int, ...] = ()


def kl_term(inputs: LossInputs) -> jax.Array:
    """Reduces `kl_divergence` between the two distributions at the prediction positions."""
    return _compare_logits(kl_divergence, inputs)


def reverse_kl_term(inputs: LossInputs) -> jax.Array:
    """Reduces `reverse_kl_divergence` between the two distributions at the prediction positions."""
    return _compare_logits(functools.partial(reverse_kl_divergence, top_k=inputs.top_k), inputs)


def jsd_term(inputs: LossInputs) -> jax.Array:
    """Reduces `js_divergence` between the two distributions at the prediction positions."""
    return _compare_logits(js_divergence, inputs)


def entropy_term(inputs: LossInputs) -> jax.Array:
    """Reduces `soft_cross_entropy` between the two distributions at the prediction positions."""
    return _compare_logits(soft_cross_entropy, inputs)


def hidden_term(inputs: LossInputs) -> jax.Array:
    """Reduces `hidden_distance` at the aligned positions, a mean over layers."""
    return _compare_hidden(hidden_distance, inputs)


def hidden_l1_term(inputs: LossInputs) -> jax.Array:
    """Reduces `hidden_l1_distance` at the aligned positions, a mean over layers."""
    return _compare_hidden(hidden_l1_distance, inputs)


def cross_entropy_term(inputs: LossInputs) -> jax.Array:
    """Reduces `cross_entropy` on the response; needs no teacher."""

    def loss(student_BpD: jax.Array, head: Head, chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        labels_Bp, weight_Bp = chunk
        return jnp.sum(cross_entropy(logits(student_BpD, head), labels_Bp) * weight_Bp)

    batch = inputs.batch
    return sum_in_chunks(loss, inputs.student.final_BPD, inputs.head, (batch.labels_BP, batch.weight_BP))


# What an objective can be made of, by the names that a config uses. A term maps `LossInputs` to one number.
TERMS: dict[str, Callable[[LossInputs], jax.Array]] = {
    "kl": kl_term,
    "reverse_kl": reverse_kl_term,
    "jsd": jsd_term,
    "entropy": entropy_term,
    "hidden": hidden_term,
    "hidden_l1": hidden_l1_term,
    "cross_entropy": cross_entropy_term,
}


def _compare_logits(compare: Callable[..., jax.Array], inputs: LossInputs) -> jax.Array:
    """Sums a comparison of teacher and student logits over the prediction positions, by their weights."""

    def loss(student_BpD: jax.Array, head: Head, chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        teacher_BpD, weight_Bp = chunk
        both = logits(teacher_BpD, head), logits(student_BpD, head)
        return jnp.sum(compare(*both, inputs.temperature) * weight_Bp)

    others = inputs.teacher.final_BPD, inputs.batch.weight_BP
    return sum_in_chunks(loss, inputs.student.final_BPD, inputs.head, others)


def _compare_hidden(compare: Callable[..., jax.Array], inputs: LossInputs) -> jax.Array:
    """Sums a comparison of the inputs of blocks, a mean over the chosen layers, over the aligned positions."""
    teacher, student = inputs.teacher.inputs_LBQD, inputs.student.inputs_LBQD
    if inputs.hidden_layers:
        layers = np.array(inputs.hidden_layers)
        teacher, student = teacher[layers], student[layers]
    return jnp.sum(jnp.mean(compare(teacher, student), axis=0) * inputs.batch.hidden_weight_BQ)
