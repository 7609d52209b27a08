"""Builds AdamW with warm-up and decay from optax."""

import functools

import optax
from ml_collections import config_dict


def learning_rate_schedule(optimizer: config_dict.ConfigDict, steps: int) -> optax.Schedule:
    """Returns a linear warm-up to the peak, then cosine or linear decay to zero at the last step, or no decay."""
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    rest = max(steps - warmup, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[optimizer.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def make_optimizer(optimizer: config_dict.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Returns AdamW behind clipping by the global norm (no clipping where clip_norm is 0).

    Equal settings give the same object, so that a step compiled for one cell of a sweep serves the next.
    """
    return _make_optimizer(config_dict.FrozenConfigDict(optimizer), steps)


@functools.cache
def _make_optimizer(optimizer: config_dict.FrozenConfigDict, steps: int) -> optax.GradientTransformation:
    """Builds what `make_optimizer` returns, once for equal settings."""
    adamw = optax.adamw(learning_rate_schedule(optimizer, steps), weight_decay=optimizer.weight_decay)
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), adamw) if optimizer.clip_norm else adamw
