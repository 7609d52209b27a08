"""Distils a @@@ b = a + b + 1 into the embedded model, from the written rule and eight samples.

    python -m rdjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Takes about 50 seconds on two CPU cores. All questions are generated from the seed: operands are 1 to 99 in training,
and 1 to 99 and 121 to 1996 in the tests. README.md shows the scores to expect. With --config.task.k=32,
--config.train.epochs=100 makes as many updates.
Another rule: --config.task.generated.constant=3 --config.task.generated.symbol='&&'
"""

from ml_collections import config_dict

from configs import paper


def get_config() -> config_dict.ConfigDict:
    config = paper.get_config()
    config.task.demos = False
    config.lora.rank = 64
    config.lora.dropout = 0.0
    # A small model needs hundreds of updates and a larger weight on the hidden states than a large model.
    config.loss.hidden_weight = 20.0
    config.loss.hidden_positions = "shared"
    config.optimizer.learning_rate = 2e-3
    config.train.epochs = 400
    config.train.valid_every = 20
    config.train.checkpoint_every = 20
    config.eval.max_new_tokens = 8
    config.eval.batch_size = 100
    return config
