"""Compares settings of each method on SmolLM2-135M-Instruct, by the validation rows of the published sentiment files.

    python -m rdjax.sweep --config=configs/sweeps/smollm2_rates.py --workdir=runs/smollm2/rates

The folder of its files, which examples/smollm2/files.py makes, has the validation rows in place of the test. The seed
is none of those of the study's tables.
"""

from ml_collections import config_dict

from configs.sweeps import smollm2_sentiment


def get_config() -> config_dict.ConfigDict:
    config = smollm2_sentiment.get_config()
    config.task.root = "runs/smollm2/files/sentiment_validation"
    config.sweep.ks = (64,)
    config.sweep.seeds = (100,)
    config.eval.systems = ("student",)
    variants = {}
    for rate in (1e-3, 5e-4, 2e-3):
        optimizer = {"learning_rate": rate}
        variants[f"tune_rate{rate:.0e}"] = {"method": "inst_tune_without_rule", "optimizer": optimizer}
        variants[f"enhanced_rate{rate:.0e}"] = {
            "method": "rule_distill_enhanced",
            "optimizer": optimizer,
            "eval": {"systems": ("student", "enhanced_with_rule")},
        }
        variants[f"distill_rate{rate:.0e}"] = {"optimizer": optimizer}
    for weight in (3, 30):
        variants[f"enhanced_weight{weight}"] = variants["enhanced_rate1e-03"] | {
            "loss": {"hidden_weight": float(weight)}
        }
    config.sweep.methods = tuple(variants)
    config.sweep.settings.update(variants)
    return config
