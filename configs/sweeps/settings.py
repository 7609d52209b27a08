"""How the settings of each method were chosen: on seeds, and so on questions, that no table uses.

python -m rdjax.sweep --config=configs/sweeps/settings.py --workdir=runs/settings
"""

from ml_collections import config_dict

from configs.sweeps import arithmetic


def get_config() -> config_dict.ConfigDict:
    config = arithmetic.get_config()
    config.sweep.ks = (8,)
    config.sweep.seeds = (100, 101, 102)
    variants = {
        f"distill_rate{rate:.0e}_weight{weight}": {
            "optimizer": {"learning_rate": rate},
            "loss": {"hidden_weight": float(weight)},
        }
        for rate in (1e-3, 2e-3, 4e-3)
        for weight in (5, 20, 100)
    }
    variants |= {
        f"tune_rate{rate:.0e}_rank{rank}": {
            "method": "inst_tune_without_rule",
            "optimizer": {"learning_rate": rate},
            "lora": {"rank": rank},
        }
        for rate in (3e-4, 1e-3, 2e-3, 5e-3)
        for rank in (16, 64)
    }
    config.sweep.methods = tuple(variants)
    config.sweep.settings.update(variants)
    return config
