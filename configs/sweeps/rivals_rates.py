"""Chooses the learning rate of each variant of configs/sweeps/rivals.py, on a seed that its tables do not have.

python -m rdjax.sweep --config=configs/sweeps/rivals_rates.py --workdir=runs/rivals_rates
"""

from ml_collections import config_dict

from configs.sweeps import rivals

RATES = (1.2e-3, rivals.RATE, 1e-2)


def get_config() -> config_dict.ConfigDict:
    config = rivals.get_config()
    config.eval.systems = ("base", "base_with_rule", "student")
    config.sweep.seeds = (100,)
    config.unlock()
    variants = {
        f"{name}_rate{rate:.0e}": {**settings, "optimizer": {"learning_rate": rate}}
        for name, settings in rivals.VARIANTS.items()
        if name != "ours"  # it takes the rate of ours without consistency
        for rate in RATES
    }
    config.sweep.methods = tuple(variants)
    config.sweep.settings = config_dict.ConfigDict(variants)
    config.lock()
    config.sweep.settings.unlock()
    return config
