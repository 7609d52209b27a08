"""Compares the methods on the paper's arithmetic rule, with its published files and SmolLM2-135M-Instruct.

    python -m rdjax.sweep --config=configs/sweeps/smollm2_arithmetic.py --workdir=runs/smollm2/arithmetic \\
        --config.model.path=<folder> --config.task.root=<data>/math_experiments

The settings are those that were chosen on the sentiment files.
"""

from ml_collections import config_dict

from configs.sweeps import smollm2_sentiment


def get_config() -> config_dict.ConfigDict:
    config = smollm2_sentiment.get_config()
    config.task.name = "arithmetic"
    config.task.root = "runs/smollm2/files/math_experiments"
    config.eval.max_new_tokens = 8
    config.sweep.ks = (8, 32)
    return config
