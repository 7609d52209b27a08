"""Reads a user's own task folder: rule.md, train.jsonl, and optional validation, test and retain files."""

import pathlib

from ml_collections import config_dict

from rdjax.data.rows import Row, read_json_lines, read_text
from rdjax.errors import UserError

REQUIRED = "a task folder holds rule.md and train.jsonl"


def read_own_folder(root: pathlib.Path, config: config_dict.ConfigDict) -> dict[str, list[Row]]:
    """Reads the splits of a folder: train.jsonl, valid.jsonl, retain.jsonl and test*.jsonl.

    Args:
      root: the folder.
      config: the run's `task` section; `k` keeps the first k training rows, 0 keeps all.

    Returns:
      Rows {rule, instruction, input, output, where} of each split. Several wordings take turns: row i of a split
      has wording i modulo their number.

    Raises:
      UserError: rule.md or train.jsonl is missing, a file is empty or faulty, or k exceeds the training rows.
    """
    wordings = read_wordings(root)
    paths = [root / "train.jsonl", root / "valid.jsonl", root / "retain.jsonl", *sorted(root.glob("test*.jsonl"))]
    splits = {}
    for path in paths:
        if path.exists() or path.stem == "train":
            rows = read_json_lines(path, f"{path}: not found; {REQUIRED}")
            splits[path.stem] = [{"rule": wordings[number % len(wordings)], **row} for number, row in enumerate(rows)]
    if config.k > len(splits["train"]):
        raise UserError(f"config.task.k = {config.k}: {root / 'train.jsonl'} has {len(splits['train'])} rows")
    splits["train"] = splits["train"][: config.k or None]
    return splits


def read_wordings(root: pathlib.Path) -> list[str]:
    """Reads the wordings of the rule: rule.md, then rule.*.md in alphabetical order.

    Raises:
      UserError: there is none, or one is empty.
    """
    paths = [path for path in (root / "rule.md", *sorted(root.glob("rule.*.md"))) if path.exists()]
    wordings = []
    for path in paths or [root / "rule.md"]:
        wordings.append(read_text(path, f"{path}: not found; {REQUIRED}").strip())
        if not wordings[-1]:
            raise UserError(f"{path}: is empty; it must hold the rule in words")
    return wordings
