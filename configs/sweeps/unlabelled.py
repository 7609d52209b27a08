"""Compares distillation on unlabelled inputs with tuning on the gold answers of the same inputs.

    python -m rdjax.sweep --config=configs/sweeps/unlabelled.py --workdir=runs/unlabelled

This is the case of a user who has a rule and inputs but no answers: the base writes them with the rule in its prompt.
The inputs cover the whole range of operands.
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
