"""Trains the paper's safety task from the published files, on any supported checkpoint.

    python -m rdjax.train --config=configs/safety.py --workdir=runs/safety \\
        --config.model.path=<checkpoint> --config.task.root=<data>/jailbreak_experiments --config.task.k=16
"""

from ml_collections import config_dict

from configs import paper


def get_config() -> config_dict.ConfigDict:
    config = paper.get_config()
    config.task.name = "safety"
    config.task.root = "data/jailbreak_experiments"
    config.task.k = 16
    config.train.accumulation = 4
    return config
