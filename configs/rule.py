"""Trains your own rule: a folder with rule.md and train.jsonl, and optionally valid.jsonl, test.jsonl, retain.jsonl.

    python -m rdjax.train --config=configs/rule.py --workdir=runs/mine \\
        --config.model.path=<checkpoint> --config.task.root=<folder>

Rows are {"input": ..., "output": ...}. If they have no outputs, add --config.task.responses=teacher: the model then
writes them itself, with the rule in its prompt. Instruction-tuned models need --config.task.template=chat. README.md
has an example folder; docs/reference.md describes the files.
"""

from ml_collections import config_dict

from configs import base


def get_config() -> config_dict.ConfigDict:
    config = base.get_config()
    config.task.name = "rule"
    config.task.root = "my_rule"
    config.task.k = 0
    config.task.template = "auto"
    config.task.responses = "auto"
    config.task.inputs = "auto"
    config.loss.hidden_positions = "shared"
    return config
