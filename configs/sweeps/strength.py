"""Compares students of bases of different strength: rulebook-language and earlier checkpoints of its training.

    python -m rdjax.rulebook --config=configs/rulebook.py --workdir=runs/rulebook
    python -m rdjax.sweep --config=configs/sweeps/strength.py --workdir=runs/strength

The first command trains rulebook-language again and writes three weaker models at earlier steps (train.keep).
"""

from ml_collections import config_dict

from configs import rulebook
from configs.sweeps import arithmetic


def get_config() -> config_dict.ConfigDict:
    config = arithmetic.get_config()
    recipe = rulebook.get_config()
    paths = {step: f"runs/rulebook/model-{step}" for step in recipe.train.keep} | {
        recipe.train.steps: "rulebook-language"
    }
    variants = {f"base_of_{step}_steps": {"model": {"path": path}} for step, path in paths.items()}
    config.sweep.methods = tuple(variants)
    config.sweep.settings.update(variants)
    config.sweep.ks = (8,)
    config.sweep.seeds = (0, 1, 2)
    return config
