"""The paper's safety study on generated questions: role plays and questions that no sample shows.

    python -m rdjax.sweep --config=configs/sweeps/safety.py --workdir=runs/safety --config.model.path=<checkpoint>

The embedded model knows arithmetic alone: it runs, and closes no gap. The published files instead:
--config.task.root=<data>/jailbreak_experiments --config.eval.max_new_tokens=64.

The settings of the methods are those chosen on arithmetic with the embedded model.
"""

from ml_collections import config_dict

from configs.sweeps import sentiment


def get_config() -> config_dict.ConfigDict:
    config = sentiment.get_config()
    config.task.name = "safety"
    return config
