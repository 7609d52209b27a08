"""The paper's safety study on generated questions: role plays and questions that no sample shows.

    python -m rdjax.sweep --config=configs/sweeps/safety.py --workdir=runs/safety

The published files instead, for a larger model: --config.model.path=<checkpoint>
--config.task.root=<data>/jailbreak_experiments --config.eval.max_new_tokens=64.

The settings of the methods are those chosen on arithmetic with the embedded model.
"""

from ml_collections import config_dict

from configs.sweeps import sentiment


def get_config() -> config_dict.ConfigDict:
    config = sentiment.get_config()
    config.task.name = "safety"
    return config
