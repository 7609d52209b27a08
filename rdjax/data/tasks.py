"""Loads a rule task: generated, from the published files, or from a user's own folder.

A task is a `datasets.DatasetDict` whose rows are {rule, instruction, input, output, where, history}: the text of the
rule, which only the teacher reads, the row's own instruction, its input, its gold output ("" if it has none), the file
and row that it came from, for messages, and the messages before the input, as JSON ("" if there are none).
"""

import dataclasses
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence

import datasets
from ml_collections import config_dict

from rdjax.data.generated import GENERATORS
from rdjax.data.own_folder import are_written, read_own_folder, read_wordings
from rdjax.data.published import LABELS, read_published
from rdjax.data.rows import Row
from rdjax.data.rule_folders import has_rule_folders, read_rule_folders
from rdjax.data.splits import RETAINED, TRAIN_AND_VALID, is_retained, kind_of_split, train_part
from rdjax.data.templates import DEMOS_LEAD
from rdjax.errors import UserError
from rdjax.storage.files import user_path

ENOUGH_TO_HOLD_OUT = 12  # training rows
MOST_RETAINED = 64  # training rows that a retained split gives
FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("rule", "instruction", "input", "output", "where", "history")}
)


@dataclasses.dataclass(frozen=True)
class RuleTask:
    """Holds the splits of a task (train, valid, test*, retain, near_misses).

    Attributes:
      splits: rows of `FEATURES`.
      notes: lines for the log.
      labelled: by test split, outputs that are known to be what the split asks for; they measure its judge.
      wordings: of the rule of a user's own folder whose inputs the model is to write.
      rules: where there are several, each one's first wording by its name.
    """

    splits: datasets.DatasetDict
    notes: tuple[str, ...] = ()
    labelled: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    wordings: tuple[str, ...] = ()
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load_task(config: config_dict.ConfigDict, seed: int) -> RuleTask:
    """Generates or reads a task.

    Args:
      config: the run's `task` section.
      seed: of generated data.

    Raises:
      UserError: a file, k or field is missing, JSON is invalid, or aligned lists do not align.
    """
    if config.name in GENERATORS and not config.root:
        generated = GENERATORS[config.name](config, seed)
        return RuleTask(as_datasets(generated.splits), labelled=generated.labelled)
    root = user_path(config.root)
    if not root.is_dir():
        raise UserError(f"config.task.root: {root} is not a folder")
    if config.name == "rule":
        return _load_own(root, config)
    splits, notes = read_published(root, config)
    labelled = LABELS[config.name](splits) if config.name in LABELS else {}
    splits = _with_rules(splits, _rule_change(config))
    if config.one_wording:
        wording = splits["train"][0]["rule"]
        splits = _with_rules(splits, lambda rule: wording)
    return RuleTask(as_datasets(splits), tuple(notes), labelled)


def _load_own(root: pathlib.Path, config: config_dict.ConfigDict) -> RuleTask:
    """Loads a user's own folder, of one rule or of several; arguments and errors as `load_task`."""
    if has_rule_folders(root):
        splits, rules = read_rule_folders(root, config)
        return RuleTask(as_datasets(_with_rules(_taught(splits, config), _rule_change(config))), rules=rules)
    if config.rules:
        raise UserError(f"config.task.rules = {tuple(config.rules)}: {root} has no folder rules/; accepted: ()")
    splits = _with_rules(_taught(read_own_folder(root, config), config), _rule_change(config))
    if config.remove_rule and are_written(root, config):
        raise UserError(f"config.task.remove_rule needs inputs on the rule: {root / 'train.jsonl'} is not found")
    wordings = read_wordings(root, config.one_wording) if are_written(root, config) else ()
    return RuleTask(as_datasets(splits), wordings=tuple(wordings))


def _taught(splits: dict[str, list[Row]], config: config_dict.ConfigDict) -> dict[str, list[Row]]:
    """Returns the splits as the teacher reads them: where a rule is to be removed, without it in train and valid."""
    if not config.remove_rule:
        return splits
    return splits | {
        split: [{**row, "rule": ""} for row in splits[split]] for split in TRAIN_AND_VALID if split in splits
    }


def divide(task: RuleTask, hold_out: float, train_on_retained: bool, seed: int) -> RuleTask:
    """Divides splits: validation rows are taken from train where there are none, training rows from retained splits.

    Args:
      hold_out: share of the training rows that validate, if the task has no validation rows and enough others.
      train_on_retained: whether rows are trained on whose answers are to stay: those of the split's own file of
        training rows, else half of the split, at most `MOST_RETAINED`; the others are tested. Several rules' near
        misses are joined.
      seed: of the choice.
    """
    splits = dict(task.splits)
    train = splits.get("train", ())
    if hold_out and "valid" not in splits and len(train) >= ENOUGH_TO_HOLD_OUT:
        held_out = min(max(round(hold_out * len(train)), 2), len(train) - 1)
        splits["valid"], splits["train"] = _draw(train, held_out, f"valid-{seed}")
    trained: dict[str, list[datasets.Dataset]] = {}
    for split in task.splits:
        if kind_of_split(split) in map(train_part, RETAINED):
            trained.setdefault(kind_of_split(split), []).append(splits.pop(split))
        elif train_on_retained and is_retained(split) and train_part(split) not in task.splits:
            rows = splits[split]
            part, splits[split] = _draw(rows, min(len(rows) // 2, MOST_RETAINED), f"{split}-{seed}")
            trained.setdefault(train_part(kind_of_split(split)), []).append(part)
    if train_on_retained:
        splits |= {split: datasets.concatenate_datasets(parts) for split, parts in trained.items()}
    return dataclasses.replace(task, splits=datasets.DatasetDict(splits))


def _draw(rows: datasets.Dataset, count: int, seed: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Returns `count` random rows and the others, each in their order."""
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    return rows.select(sorted(chosen)), rows.select([number for number in range(len(rows)) if number not in chosen])


def _rule_change(config: config_dict.ConfigDict) -> Callable[[str], str]:
    """Returns what is done to the text of every rule: demonstrations stay or are left out."""
    return (lambda rule: rule) if config.demos else (lambda rule: rule.split(DEMOS_LEAD)[0])


def _with_rules(splits: dict[str, list[Row]], change: Callable[[str], str]) -> dict[str, list[Row]]:
    """Returns the splits with every rule changed."""
    return {split: [{**row, "rule": change(row["rule"])} for row in rows] for split, rows in splits.items()}


def as_datasets(splits: dict[str, list[Row]]) -> datasets.DatasetDict:
    """Returns lists of rows as datasets."""
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list([{"history": "", **row} for row in rows], FEATURES)
            for split, rows in splits.items()
        }
    )
