"""Compares four methods on the paper's arithmetic rule: four k, five seeds, the embedded model.

    python -m rdjax.sweep --config=configs/sweeps/arithmetic.py --workdir=runs/arithmetic

With the published files: --config.task.root=<data>/math_experiments.
"""

from ml_collections import config_dict

from configs import quickstart


def get_config() -> config_dict.ConfigDict:
    config = quickstart.get_config()
    config.eval.systems = ("base", "base_with_rule", "student")
    config.unlock()  # to add the section `sweep`
    config.sweep = config_dict.ConfigDict()
    config.sweep.methods = (
        "rule_distill_base",
        "rule_distill_enhanced",
        "inst_tune_without_rule",
        "inst_tune_with_rule",
    )
    config.sweep.ks = (4, 8, 16, 32)
    config.sweep.seeds = (0, 1, 2, 3, 4)
    config.sweep.updates = 400  # updates of every run, unless its settings have train.epochs; 0: as train.epochs says
    # {method: the fields that differ for it}, so that each method runs with its best settings. A name that is not a
    # method defines a variant of config.method, or of the method that its fields name.
    config.sweep.settings = config_dict.ConfigDict()
    # The best of configs/sweeps/settings.py for tuning on gold outputs; distillation uses the quickstart's settings.
    tuning = {"optimizer": {"learning_rate": 5e-3}, "lora": {"rank": 16}}
    config.sweep.settings.inst_tune_without_rule = tuning
    config.sweep.settings.inst_tune_with_rule = tuning
    # Also evaluates the enhanced teacher, which every cell of this method trains.
    enhanced = (*config.eval.systems, "enhanced_with_rule")
    config.sweep.settings.rule_distill_enhanced = {"eval": {"systems": enhanced}}
    config.lock()
    config.sweep.settings.unlock()  # accepts any method or variant
    return config
