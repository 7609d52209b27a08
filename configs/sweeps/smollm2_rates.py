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
    methods = {
        "tune": {"method": "inst_tune_without_rule"},
        "enhanced": {"method": "rule_distill_enhanced", "eval": {"systems": ("student", "enhanced_with_rule")}},
        "distill": {"method": "rule_distill_base"},
    }
    variants = {
        f"{name}_rate{rate:.0e}": {**method, "optimizer": {"learning_rate": rate}}
        for rate in (1e-3, 2e-3, 5e-4)
        for name, method in methods.items()
    }
    # Twice as many updates, other weights on hidden states, and hidden states of the response alone.
    for name in ("enhanced", "tune"):
        variants[f"{name}_128_updates"] = {**methods[name], "train": {"epochs": 16}}
    losses = {
        "weight30": {"hidden_weight": 30.0},
        "weight0": {"hidden_weight": 0.0},
        "response_positions": {"hidden_positions": "response"},
    }
    variants.update({f"enhanced_{name}": {**methods["enhanced"], "loss": loss} for name, loss in losses.items()})
    config.sweep.methods = tuple(variants)
    config.sweep.settings.update(variants)
    return config
