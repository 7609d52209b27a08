"""Unlabelled inputs against labelled ones: n inputs over the whole range, answered by the teacher or by gold.

    python -m rdjax.sweep --config=configs/sweeps/unlabelled.py --workdir=runs/unlabelled

The user who has a rule and inputs but no answers lets the rule-conditioned base write them; instruction tuning gets
the gold answers of the same inputs.
"""

from ml_collections import config_dict

from configs.sweeps import arithmetic


def get_config() -> config_dict.ConfigDict:
    config = arithmetic.get_config()
    config.task.generated.train_high = 1999
    config.sweep.methods = ("distill_unlabelled", "inst_tune_without_rule")
    config.sweep.ks = (8, 16, 32, 64, 128)
    config.sweep.seeds = (0, 1, 2)
    config.sweep.settings.distill_unlabelled = {"task": {"responses": "teacher"}}
    return config
