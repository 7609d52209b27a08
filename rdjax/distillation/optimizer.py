"""Builds AdamW with warm-up and decay from optax, and chooses a learning rate by the model's width."""

import copy
import functools

import optax
from ml_collections import config_dict

AUTO = "auto"


def rate_for_width(width: int) -> float:
    """Returns the learning rate at which LoRA adapters of a model of width D usually learn well.

    5e-4 * (2000 / D)^0.78 is a fit that tinker-cookbook made to Llamas of 1 to 70 billion parameters; here it held on
    models of width 160 and 576 too (docs/study_defaults.md).
    """
    return 5e-4 * (2000 / width) ** 0.78


def with_rate(config: config_dict.ConfigDict, rate: float) -> config_dict.ConfigDict:
    """Returns a copy of a run's config with a learning rate that is a number."""
    changed = copy.deepcopy(config)
    changed.optimizer.learning_rate = float(rate)
    return changed


def with_auto_rate(config: config_dict.ConfigDict, width: int) -> config_dict.ConfigDict:
    """Returns the config with `rate_for_width` in the place of "auto"."""
    rate = config.optimizer.learning_rate
    return with_rate(config, rate_for_width(width) if rate == AUTO else rate)


def learning_rate_schedule(optimizer: config_dict.ConfigDict, steps: int) -> optax.Schedule:
    """Returns a linear warm-up to the peak, then cosine or linear decay to zero at the last step, or no decay.

    The warm-up, whose first step has a rate of zero, takes at most half of the steps: a short stage trains too.
    """
    peak, warmup = optimizer.learning_rate, min(optimizer.warmup_steps, steps // 2)
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
