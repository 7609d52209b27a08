"""Teach the embedded model a @@@ b = a + b + 1 from the written rule and eight samples.

    python -m rdjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Two CPU cores are enough: about 50 seconds. Train operands 1-99, tests 1-99 and 121-1996, all generated from the
seed; the scores to expect stand in README.md. With k = 32 take --config.train.epochs=100 for as many updates.
Another rule: --config.task.generated.constant=3 --config.task.generated.symbol='&&'
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    config = base.get_config()
    config.task.demos = False
    config.lora.rank = 64
    config.lora.dropout = 0.0
    # A small model needs hundreds of updates and a stronger pull on the hidden states than a large one.
    config.loss.hidden_weight = 20.0
    config.loss.hidden_positions = "shared"
    config.optimizer.learning_rate = 2e-3
    config.train.epochs = 400
    config.train.valid_every = 20
    config.train.checkpoint_every = 20
    config.eval.max_new_tokens = 8
    config.eval.batch_size = 100
    return config
