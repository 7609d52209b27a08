"""Compares the methods on the paper's sentiment rule, with topics that are not in the samples.

    python -m rdjax.sweep --config=configs/sweeps/sentiment.py --workdir=runs/sentiment

With the published files, for a larger model: --config.model.path=<checkpoint>
--config.task.root=<data>/bob_sentiment_experiments --config.task.one_wording=True --config.eval.max_new_tokens=64.

The settings of the methods were chosen on arithmetic with the embedded model.
"""

from ml_collections import config_dict

from configs.sweeps import arithmetic


def get_config() -> config_dict.ConfigDict:
    config = arithmetic.get_config()
    config.model.path = "rulebook-language"
    config.task.name = "sentiment"
    config.eval.max_new_tokens = 40
    config.sweep.ks = (8, 32)
    config.sweep.seeds = (0, 1, 2)
    config.sweep.updates = 400
    return config
