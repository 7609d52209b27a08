"""The authors' settings, from which the study's configs start: a fixed rate and number of epochs, and gold validation.

The published example trains 20 epochs at 1e-4, and keeps the epoch with the lowest cross-entropy on the validation
file's outputs. Nothing is held out, and nothing but the rule's own samples is trained on.

    python -m rdjax.train --config=configs/paper.py --workdir=runs/paper --config.task.root=<the published files>
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    config = base.get_config()
    config.optimizer.learning_rate = 1e-4
    config.train.epochs = 20
    config.train.valid_loss = "gold"
    config.task.hold_out = 0.0
    config.loss.retain_weight = 0.0
    return config
