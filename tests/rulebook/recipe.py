"""Holds a recipe small enough for tests."""

from configs import rulebook

SMALL = {
    "model.vocab": 400,
    "model.width": 16,
    "model.layers": 2,
    "model.heads": 2,
    "model.kv_heads": 2,
    "model.feed_forward": 32,
    "data.rows": 2,
    "data.rules_by": 2,
    "data.drill_rows": 1,
    "data.named_from": 1,
    "data.drills_alone": 1,
    "optimizer.warmup_steps": 1,
    "optimizer.low_until": 2,
    "optimizer.decay_from": 2,
    "train.steps": 4,
    "train.save_every": 2,
    "train.probe_every": 4,
    "train.keep": (2,),
}


def small_recipe(**changes):
    """Returns the recipe with small sizes; `changes` are by path, as in "train.steps"."""
    config = rulebook.get_config()
    config.update_from_flattened_dict(SMALL | changes)
    return config
