"""The paper's safety study in miniature, on the embedded model: role plays and questions that no sample shows.

    python -m rdjax.sweep --config=configs/sweeps/safety.py --workdir=runs/safety

The published files instead: --config.task.root=<data>/jailbreak_experiments.
"""

from ml_collections import config_dict

from configs.sweeps import sentiment


def get_config() -> config_dict.ConfigDict:
    config = sentiment.get_config()
    config.task.name = "safety"
    return config
