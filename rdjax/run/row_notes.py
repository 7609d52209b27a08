"""Says in the log what the rows of a task do not allow: tests that are trained on, and outputs that are not used."""

from collections.abc import Iterable, Mapping

import datasets
from ml_collections import config_dict
from transformers import PreTrainedTokenizerBase

from rdjax.data.rows import student_input
from rdjax.data.splits import RETAINED, is_evaluated, is_retained, is_test, kind_of_split, rule_of_split, train_part
from rdjax.data.tasks import RuleTask
from rdjax.evaluation.judges import Judge


def row_notes(
    config: config_dict.ConfigDict, task: RuleTask, judges: Mapping[str, Judge], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Returns lines for the log.

    Args:
      config: the run's, as the user gave it.
      task: as it is trained on and tested.
      judges: of its splits.
    """
    notes = _overlap_notes(task.splits) + length_notes(config, task, judges, tokenizer)
    if config.task.responses == "auto" and "train" in task.splits:
        notes += _output_notes("train", task.splits["train"], "config.task.responses = gold needs one in every row")
    for split in filter(is_test, task.splits):
        if split not in judges:
            notes += _output_notes(split, task.splits[split], "exact_match needs one in every row")
    tested = {rule_of_split(split) for split in task.splits if is_test(split)}
    return notes + [f"the rule {name} has no test" for name in task.rules if tested and name not in tested]


def length_notes(
    config: config_dict.ConfigDict, task: RuleTask, judges: Mapping[str, Judge], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Says which splits have outputs that no answer can equal, because answers end before."""
    notes, most = [], config.eval.max_new_tokens
    for split in (split for split, judge in judges.items() if judge.name == "exact_match" and split in task.splits):
        outputs = task.splits[split]["output"]
        longer = sum(len(ids) > most for ids in tokenizer(list(outputs), add_special_tokens=False)["input_ids"])
        if longer:
            notes.append(
                f"{split}: {longer} of {len(outputs)} outputs have more than config.eval.max_new_tokens = {most} "
                "tokens; no answer can match them"
            )
    return notes


def inputs_trained_on(splits: Mapping[str, datasets.Dataset]) -> dict[str, list[str]]:
    """Finds for each split that is validated or evaluated the rows whose inputs are also trained on."""
    found = {}
    for split, rows in splits.items():
        part = train_part(kind_of_split(split)) if is_retained(split) else "train"
        if part in splits and (split == "valid" or is_evaluated(split)):
            found[split] = _rows_in(rows, splits[part])
    return found


def _overlap_notes(splits: Mapping[str, datasets.Dataset]) -> list[str]:
    """Finds inputs that stand in two splits which should have none in common."""
    notes = [
        f"{split}: {len(same)} of {len(splits[split])} inputs are trained on too (first: {same[0]})"
        for split, same in inputs_trained_on(splits).items()
        if same
    ]
    compared = [(split, "valid", "also choose the checkpoint, as rows of valid") for split in filter(is_test, splits)]
    compared += [
        (split, "train", "are rows of train too: there the rule is to be followed, here not")
        for split in filter(_is_off_rule, splits)
    ]
    for split, other, what in compared:
        same = _rows_in(splits[split], splits.get(other, ()))
        if same:
            notes.append(f"{split}: {len(same)} of {len(splits[split])} inputs {what} (first: {same[0]})")
    return notes


def _is_off_rule(split: str) -> bool:
    """Tells whether a split, or the part of one that is trained on, has inputs whose answers are to stay."""
    return is_retained(split) or kind_of_split(split) in map(train_part, RETAINED)


def _rows_in(rows: datasets.Dataset, others: Iterable[Mapping[str, str]]) -> list[str]:
    """Returns where those rows are from whose inputs the others have too."""
    inputs = set(map(student_input, others))
    return [row["where"] for row in rows if student_input(row) in inputs]


def _output_notes(split: str, rows: datasets.Dataset, why: str) -> list[str]:
    """Says that the outputs of a split are not used, where some rows have one and others none."""
    without = [row["where"] for row in rows if not row["output"]]
    if not without or len(without) == len(rows):
        return []
    count = f"{len(rows) - len(without)} of {len(rows)} rows have an output; they are not used"
    return [f"{split}: {count}: {why} ({without[0]} has none)"]
