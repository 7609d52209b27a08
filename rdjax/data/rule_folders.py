"""Reads a task of several rules, which one adapter learns: a folder for each of them in `rules/`."""

import pathlib
import re

from ml_collections import config_dict

from rdjax.data.own_folder import read_own_folder, read_wordings, with_wordings
from rdjax.data.rows import Row, read_json_lines
from rdjax.data.splits import NEAR_MISSES, RETAIN, is_test, train_part
from rdjax.errors import UserError

RULES = "rules"
SHARED = (RETAIN, train_part(RETAIN))  # splits that all rules may share
NAME = re.compile(r"\w[\w.-]*")


def has_rule_folders(root: pathlib.Path) -> bool:
    """Tells whether a task folder is of several rules."""
    return (root / RULES).is_dir()


def read_rule_folders(
    root: pathlib.Path, config: config_dict.ConfigDict
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Reads rules/<name>/, each a folder as of one rule, and retain.jsonl and retain_train.jsonl beside `rules`.

    Args:
      root: the task's folder.
      config: the run's `task` section; of each rule's training rows `k` keeps the first k, and `rules` names the
        rules that are read, if not all.

    Returns:
      Rows of each split, as `read_own_folder`: the training, validation and off-rule rows of all rules together, and
      the tests and near misses of each rule as `<name>/<split>`. And each rule's first wording, by its name.

    Raises:
      UserError: as `read_own_folder`; a rule's name is no plain one, a file stands where it belongs to no rule, only
        some rules have validation rows, or inputs are to be written.
    """
    folders = rule_folders(root)
    for name in config.rules:
        if name not in folders:
            raise UserError(f"config.task.rules: {name!r} is not in {root / RULES}; accepted: {', '.join(folders)}")
    folders = {name: folder for name, folder in folders.items() if name in config.rules or not config.rules}
    _check_files(root, folders, config)
    rules: dict[str, str] = {}
    splits: dict[str, list[Row]] = {}
    for name, folder in folders.items():
        rules[name] = read_wordings(folder, one_wording=True)[0]
        for split, rows in read_own_folder(folder, config).items():
            of_rule = is_test(split) or split in (NEAR_MISSES, train_part(NEAR_MISSES))
            splits.setdefault(f"{name}/{split}" if of_rule else split, []).extend(rows)
    for split in SHARED:
        path = root / f"{split}.jsonl"
        if path.exists():
            shared = with_wordings(read_json_lines(path, f"{path}: not found"), list(rules.values()))
            splits.setdefault(split, []).extend(shared)
    return splits, rules


def rule_folders(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folders of the rules by their names, in alphabetical order.

    Raises:
      UserError: there is none, or a name is no plain one.
    """
    paths = sorted(path for path in (root / RULES).iterdir() if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{root / RULES}: is empty; it must hold a folder for each rule")
    for path in paths:
        if not path.is_dir() or not NAME.fullmatch(path.name):
            raise UserError(f"{path}: is no rule's folder; its name may have letters, digits, _, - and .")
    return {path.name: path for path in paths}


def _check_files(root: pathlib.Path, folders: dict[str, pathlib.Path], config: config_dict.ConfigDict) -> None:
    """Raises UserError where a file is missing that every rule needs, or stands beside the rules."""
    if config.inputs == "written":
        raise UserError(f"config.task.inputs = written: {root / RULES} has several rules; accepted: file, auto")
    for path in (*sorted(root.glob("rule*.md")), *sorted(root.glob("*.jsonl"))):
        if path.stem not in SHARED:
            raise UserError(f"{path}: belongs to no rule; with {root / RULES} it must be in one of its folders")
    for folder in folders.values():
        if not (folder / "train.jsonl").exists():
            raise UserError(f"{folder / 'train.jsonl'}: not found; with several rules each has inputs of its own")
    validated = [folder for folder in folders.values() if (folder / "valid.jsonl").exists()]
    if validated and len(validated) < len(folders):
        other = next(folder for folder in folders.values() if folder not in validated)
        raise UserError(
            f"{other / 'valid.jsonl'}: not found, but {validated[0] / 'valid.jsonl'} exists; "
            "accepted: one for every rule, or for none"
        )
