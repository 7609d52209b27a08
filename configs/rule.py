"""Trains your own rule: a folder with rule.md, and optionally train.jsonl, valid.jsonl, test.jsonl, retain.jsonl.

    python -m rdjax.train --config=configs/rule.py --workdir=runs/mine \\
        --config.model.path=<checkpoint> --config.task.root=<folder>

Rows are {"input": ..., "output": ...}. Without train.jsonl an instruction-tuned model writes inputs itself; where rows
have no outputs, it writes them with the rule in its prompt. Its chat template is used if it has one. Each of these can
be set: task.inputs, task.responses, task.template. docs/reference.md describes the files.
"""

from rdjax.defaults import rule_config as get_config

__all__ = ["get_config"]
