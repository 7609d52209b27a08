"""Compares the methods on the paper's safety rule, with role plays and questions that are not in the samples.

    python -m rdjax.sweep --config=configs/sweeps/safety.py --workdir=runs/safety

With the published files, for a larger model: --config.model.path=<checkpoint>
--config.task.root=<data>/jailbreak_experiments --config.eval.max_new_tokens=64.

The settings of the methods were chosen on arithmetic with the embedded model.
"""

from ml_collections import config_dict

from configs.sweeps import sentiment


def get_config() -> config_dict.ConfigDict:
    config = sentiment.get_config()
    config.task.name = "safety"
    return config
