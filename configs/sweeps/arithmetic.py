"""The paper's arithmetic study in miniature: four methods, four k, five seeds, on the embedded model.

    python -m rdjax.sweep --config=configs/sweeps/arithmetic.py --workdir=runs/arithmetic

The published files instead: --config.task.root=<data>/math_experiments.
"""

from ml_collections import config_dict

from configs import quickstart


def get_config() -> config_dict.ConfigDict:
    config = quickstart.get_config()
    config.eval.systems = ("base", "base_with_rule", "student")
    config.unlock()  # it gets a section of its own
    config.sweep = config_dict.ConfigDict()
    config.sweep.methods = (
        "rule_distill_base",
        "rule_distill_enhanced",
        "inst_tune_without_rule",
        "inst_tune_with_rule",
    )
    config.sweep.ks = (4, 8, 16, 32)
    config.sweep.seeds = (0, 1, 2, 3, 4)
    config.sweep.updates = 400  # of every run whatever its k, where its settings give no train.epochs; 0: train.epochs
    # {method: fields that it sets otherwise}: each method at its own best. A name that is no method is a variant, of
    # config.method where it does not name another.
    config.sweep.settings = config_dict.ConfigDict()
    # The best of configs/sweeps/settings.py for tuning on the gold outputs; distillation's are the quickstart's.
    tuning = {"optimizer": {"learning_rate": 5e-3}, "lora": {"rank": 16}}
    config.sweep.settings.inst_tune_without_rule = tuning
    config.sweep.settings.inst_tune_with_rule = tuning
    # Enhanced-ICL: its teacher is the cell's own.
    enhanced = (*config.eval.systems, "enhanced_with_rule")
    config.sweep.settings.rule_distill_enhanced = {"eval": {"systems": enhanced}}
    config.lock()
    config.sweep.settings.unlock()  # any method or variant
    return config
