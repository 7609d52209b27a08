"""Compares the methods on the paper's safety rule, with its published files and SmolLM2-135M-Instruct.

    python -m rdjax.sweep --config=configs/sweeps/smollm2_safety.py --workdir=runs/smollm2/safety \\
        --config.model.path=<folder> --config.task.root=<data>/jailbreak_experiments

The settings are those that were chosen on the sentiment files.
"""

from ml_collections import config_dict

from configs.sweeps import smollm2_sentiment


def get_config() -> config_dict.ConfigDict:
    config = smollm2_sentiment.get_config()
    config.task.name = "safety"
    config.task.root = "runs/smollm2/files/jailbreak_experiments"
    return config
