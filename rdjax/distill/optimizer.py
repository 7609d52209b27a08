"""AdamW with warm-up and decay, as optax pieces."""

import functools

import optax
from ml_collections import config_dict


def learning_rate_schedule(optimizer: config_dict.ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine or linear decay to zero at the last step, or none."""
    return _schedule(optimizer.learning_rate, optimizer.warmup_steps, optimizer.schedule, steps)


def _schedule(peak: float, warmup: int, decay: str, steps: int) -> optax.Schedule:
    rest = max(steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[decay]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def make_optimizer(optimizer: config_dict.ConfigDict, steps: int) -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm (no clipping where clip_norm is 0).

    Equal settings give the same object: a step compiled for one cell of a sweep serves the next.
    """
    o = optimizer
    return _adamw(o.learning_rate, o.warmup_steps, o.schedule, o.weight_decay, o.clip_norm, steps)


@functools.cache
def _adamw(
    peak: float, warmup: int, decay: str, weight_decay: float, clip_norm: float, steps: int
) -> optax.GradientTransformation:
    adamw = optax.adamw(_schedule(peak, warmup, decay, steps), weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw
