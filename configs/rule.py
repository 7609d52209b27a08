"""Your own rule: a folder with rule.md and train.jsonl (valid.jsonl, test.jsonl, retain.jsonl if you have them).

    python -m rdjax.train --config=configs/rule.py --workdir=runs/mine \\
        --config.model.path=<checkpoint> --config.task.root=<folder>

Rows are {"input": ..., "output": ...}. Without outputs add --config.task.responses=teacher: the model writes them
itself while it reads the rule. Instruction-tuned models want --config.task.template=chat.
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    config = base.get_config()
    config.task.name = "rule"
    config.task.root = "my_rule"
    config.task.k = 0
    config.loss.hidden_positions = "shared"
    return config
