"""Compares settings of each method, on seeds (and so questions) that the tables of the study do not use.

    python -m rdjax.sweep --config=configs/sweeps/settings.py --workdir=runs/settings

The best settings of each method went into the other sweeps.
"""

from ml_collections import config_dict

from configs.sweeps import arithmetic


def get_config() -> config_dict.ConfigDict:
    config = arithmetic.get_config()
    config.sweep.ks = (8,)
    config.sweep.seeds = (100, 101, 102)
    config.eval.systems = ("student",)
    variants = {
        f"distill_rate{rate:.0e}_weight{weight}": {
            "optimizer": {"learning_rate": rate},
            "loss": {"hidden_weight": float(weight)},
        }
        for rate, weight in ((2e-3, 5), (2e-3, 20), (2e-3, 100), (1e-3, 20), (4e-3, 20))
    }
    # Keep the last epoch instead of the one with the lowest validation loss; make fewer updates.
    variants["distill_last"] = {"train": {"valid_every": 0}}
    variants["distill_100_epochs"] = {"train": {"epochs": 100}}
    variants |= {
        f"tune_rate{rate:.0e}_rank{rank}": {
            "method": "inst_tune_without_rule",
            "optimizer": {"learning_rate": rate},
            "lora": {"rank": rank},
        }
        for rate, rank in ((3e-4, 64), (1e-3, 64), (2e-3, 64), (5e-3, 64), (1e-3, 16), (5e-3, 16), (1e-2, 16))
    }
    # Tuning overfits within a few epochs, so validate more often.
    for name in ("tune_rate5e-03_rank16", "tune_rate2e-03_rank64"):
        variants[f"{name}_often"] = variants[name] | {"train": {"valid_every": 2, "epochs": 100}}
    config.sweep.methods = tuple(variants)
    config.sweep.settings.update(variants)
    return config
