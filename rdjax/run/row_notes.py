"""Says in the log what the rows of a task do not allow: tests that are trained on, and outputs that are not used."""

from collections.abc import Mapping

import datasets
from ml_collections import config_dict

from rdjax.data.splits import is_evaluated, is_retained, is_test, kind_of_split, rule_of_split, train_part
from rdjax.data.tasks import RuleTask
from rdjax.evaluation.judges import Judge


def row_notes(config: config_dict.ConfigDict, task: RuleTask, judges: Mapping[str, Judge]) -> list[str]:
    """Returns lines for the log.

    Args:
      config: the run's, as the user gave it.
      task: as it is trained on and tested.
      judges: of its splits.
    """
    notes = _overlap_notes(task.splits)
    if config.task.responses == "auto" and "train" in task.splits:
        notes += _output_notes("train", task.splits["train"], "config.task.responses = gold needs one in every row")
    for split in filter(is_test, task.splits):
        if split not in judges:
            notes += _output_notes(split, task.splits[split], "exact_match needs one in every row")
    tested = {rule_of_split(split) for split in task.splits if is_test(split)}
    return notes + [f"the rule {name} has no test" for name in task.rules if tested and name not in tested]


def _overlap_notes(splits: Mapping[str, datasets.Dataset]) -> list[str]:
    """Finds the splits whose inputs are also trained on."""
    notes = []
    for split, rows in splits.items():
        part = train_part(kind_of_split(split)) if is_retained(split) else "train"
        if part in splits and (split == "valid" or is_evaluated(split)):
            trained = set(map(_input_of, splits[part]))
            same = [row["where"] for row in rows if _input_of(row) in trained]
            if same:
                notes.append(f"{split}: {len(same)} of {len(rows)} inputs are trained on too (first: {same[0]})")
    return notes


def _input_of(row: Mapping[str, str]) -> tuple[str, str, str]:
    """Returns what the student reads of a row."""
    return row["instruction"], row["input"], row["history"]


def _output_notes(split: str, rows: datasets.Dataset, why: str) -> list[str]:
    """Says that the outputs of a split are not used, where some rows have one and others none."""
    without = [row["where"] for row in rows if not row["output"]]
    if not without or len(without) == len(rows):
        return []
    count = f"{len(rows) - len(without)} of {len(rows)} rows have an output; they are not used"
    return [f"{split}: {count}: {why} ({without[0]} has none)"]
