"""Reads a user's own task folder: rule.md, train.jsonl, and optional files of other splits."""

import pathlib
import re
from collections.abc import Sequence

from ml_collections import config_dict

from rdjax.data.rows import Row, read_json_lines
from rdjax.data.splits import RETAINED, TRAIN_AND_VALID, is_test, train_part
from rdjax.errors import UserError
from rdjax.storage.files import read_text

REQUIRED = "a task folder holds rule.md and, unless the model writes the inputs, train.jsonl"
NAMES = (*TRAIN_AND_VALID, *RETAINED, *map(train_part, RETAINED))  # of the files of rows, beside test*
OTHER_FORMS = (".json", ".ndjson", ".csv", ".tsv", ".parquet")  # in which others keep rows
# Files that look like a wording of the rule and are none.
OTHER_WORDING = re.compile(r"rules?[-_ ]?\d+\.md|rules\.md|rules?\.txt", re.IGNORECASE)


def read_own_folder(root: pathlib.Path, config: config_dict.ConfigDict) -> dict[str, list[Row]]:
    """Reads the splits of a folder, each from the file of its name: train, valid, test*, and retained splits.

    Args:
      root: the folder.
      config: the run's `task` section; `k` keeps the first k training rows, 0 keeps all, and with `one_wording` all
        rows have the first wording.

    Returns:
      Rows {rule, instruction, input, output, where} of each split. Several wordings take turns: row i of a split
      has wording i modulo their number.

    Raises:
      UserError: rule.md is missing, or train.jsonl where inputs are not written; a file is empty, faulty, or has
        another name; or k exceeds the training rows where none are written.
    """
    wordings = read_wordings(root, config.one_wording)
    _check_names(root)
    named = (root / f"{split}.jsonl" for split in NAMES)
    splits = {}
    for path in (*named, *sorted(root.glob("test*.jsonl"))):
        if path.exists() or (path.stem == "train" and not are_written(root, config)):
            rows = read_json_lines(path, f"{path}: not found; {REQUIRED}")
            splits[path.stem] = with_wordings(rows, wordings)
    if "train" not in splits:
        return splits
    if config.k > len(splits["train"]) and not are_written(root, config):
        raise UserError(f"config.task.k = {config.k}: {root / 'train.jsonl'} has {len(splits['train'])} rows")
    splits["train"] = splits["train"][: config.k or None]
    return splits


def _check_names(root: pathlib.Path) -> None:
    """Refuses files of rows that would not be read: of another name, or in another form."""
    accepted = ", ".join(f"{name}.jsonl" for name in (*NAMES, "test*"))
    for path in sorted(root.iterdir()):
        name, suffix = path.name.partition(".")[0], path.suffix.lower()
        known = name.lower() in NAMES or is_test(name.lower())
        read = path.suffix == ".jsonl" and (path.stem in NAMES or is_test(path.stem))
        other_form = suffix in OTHER_FORMS or (suffix == ".txt" and ".jsonl" in path.name.lower())
        if not read and (suffix == ".jsonl" or (other_form and known)):
            raise UserError(f"{path}: is not read; accepted: {accepted} (JSON Lines)")
        if OTHER_WORDING.fullmatch(path.name):
            raise UserError(f"{path}: is not read; accepted: rule.md, and rule.<name>.md for further wordings")


def are_written(root: pathlib.Path, config: config_dict.ConfigDict) -> bool:
    """Tells whether the model writes inputs: it is asked to, or may and there is no train.jsonl."""
    return config.inputs == "written" or (config.inputs == "auto" and not (root / "train.jsonl").exists())


def with_wordings(rows: Sequence[Row], wordings: Sequence[str]) -> list[Row]:
    """Adds the rule to rows; several wordings take turns."""
    return [{**row, "rule": wordings[number % len(wordings)]} for number, row in enumerate(rows)]


def read_wordings(root: pathlib.Path, one_wording: bool) -> list[str]:
    """Reads the wordings of the rule: rule.md, then rule.*.md in alphabetical order.

    Args:
      one_wording: whether to read the first alone.

    Raises:
      UserError: there is none, or one is empty.
    """
    paths = [path for path in (root / "rule.md", *sorted(root.glob("rule.*.md"))) if path.exists()]
    wordings = []
    for path in paths[: 1 if one_wording else None] or [root / "rule.md"]:
        wordings.append(read_text(path, f"{path}: not found; {REQUIRED}").strip())
        if not wordings[-1]:
            raise UserError(f"{path}: is empty; it must hold the rule in words")
    return wordings
