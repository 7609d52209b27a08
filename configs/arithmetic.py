"""Trains the paper's arithmetic task from the published files, on any supported checkpoint.

    python -m rdjax.train --config=configs/arithmetic.py --workdir=runs/arithmetic \\
        --config.model.path=<checkpoint> --config.task.root=<data>/math_experiments --config.task.k=8

The defaults are the settings that the authors published. For the embedded model use those of configs/quickstart.py.
"""

from ml_collections import config_dict

from configs import paper


def get_config() -> config_dict.ConfigDict:
    config = paper.get_config()
    config.task.name = "arithmetic"
    config.task.root = "data/math_experiments"
    config.train.accumulation = 4
    config.eval.max_new_tokens = 16
    return config
