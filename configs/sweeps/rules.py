"""Distils other arithmetic rules: another constant, another value, and one that needs a comparison.

    python -m rdjax.sweep --config=configs/sweeps/rules.py --workdir=runs/rules

The settings are those of configs/quickstart.py.
"""

from ml_collections import config_dict

from configs.sweeps import arithmetic


def get_config() -> config_dict.ConfigDict:
    config = arithmetic.get_config()
    rules = {
        "plus3": {"constant": 3, "symbol": "&&"},
        "first7": {"value": "first", "constant": 7, "symbol": "%%"},
        "larger7": {"value": "larger", "constant": 7, "symbol": "%%"},
    }
    config.sweep.methods = tuple(rules)
    config.sweep.settings.update({name: {"task": {"generated": rule}} for name, rule in rules.items()})
    config.sweep.ks = (8, 32)
    config.sweep.seeds = (0, 1, 2)
    return config
