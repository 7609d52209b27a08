"""Trains the paper's sentiment task from the published files, on any supported checkpoint.

    python -m rdjax.train --config=configs/sentiment.py --workdir=runs/sentiment \\
        --config.model.path=<checkpoint> --config.task.root=<data>/bob_sentiment_experiments --config.task.k=16

In the files the wording of the rule reveals the class of the input; here every row gets the same wording.
"""

from ml_collections import config_dict

from configs import paper


def get_config() -> config_dict.ConfigDict:
    config = paper.get_config()
    config.task.name = "sentiment"
    config.task.root = "data/bob_sentiment_experiments"
    config.task.k = 16
    config.task.one_wording = True
    config.train.accumulation = 4
    return config
