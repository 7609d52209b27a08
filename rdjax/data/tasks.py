"""Loads a rule task: generated, from the published files, or from a user's own folder.

A task is a `datasets.DatasetDict` whose rows are {rule, instruction, input, output, where, history}: the text of the
rule, which only the teacher reads, the row's own instruction, its input, its gold output ("" if it has none), the file
and row that it came from, for messages, and the messages before the input, as JSON ("" if there are none).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import datasets
from ml_collections import config_dict

from rdjax.data.generated import GENERATORS
from rdjax.data.own_folder import read_own_folder
from rdjax.data.published import LABELS, read_published
from rdjax.data.rows import Row
from rdjax.data.templates import DEMOS_LEAD
from rdjax.errors import UserError

FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("rule", "instruction", "input", "output", "where", "history")}
)


@dataclasses.dataclass(frozen=True)
class RuleTask:
    """Holds the splits of a task (train, valid, test*, retain).

    Attributes:
      splits: rows of `FEATURES`.
      notes: lines for the log.
      labelled: by test split, outputs that are known to be what the split asks for; they measure its judge.
    """

    splits: datasets.DatasetDict
    notes: tuple[str, ...] = ()
    labelled: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


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
        return RuleTask(_as_datasets(generated.splits), labelled=generated.labelled)
    root = pathlib.Path(config.root)
    if not root.is_dir():
        raise UserError(f"config.task.root: {root} is not a folder")
    splits, notes = (read_own_folder(root, config), []) if config.name == "rule" else read_published(root, config)
    labelled = LABELS[config.name](splits) if config.name in LABELS else {}
    if not config.demos:
        splits = _with_rules(splits, lambda rule: rule.split(DEMOS_LEAD)[0])
    if config.one_wording:
        wording = splits["train"][0]["rule"]
        splits = _with_rules(splits, lambda rule: wording)
    return RuleTask(_as_datasets(splits), tuple(notes), labelled)


def _with_rules(splits: dict[str, list[Row]], change: Callable[[str], str]) -> dict[str, list[Row]]:
    """Returns the splits with every rule changed."""
    return {split: [{**row, "rule": change(row["rule"])} for row in rows] for split, rows in splits.items()}


def _as_datasets(splits: dict[str, list[Row]]) -> datasets.DatasetDict:
    """Returns lists of rows as datasets."""
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_list([{"history": "", **row} for row in rows], FEATURES)
            for split, rows in splits.items()
        }
    )
