"""Lets the model write the inputs of a task, and finds out which of them its rule is not about."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import config_dict

from rdjax.config import RETAIN
from rdjax.data.own_folder import with_wordings
from rdjax.data.rows import Row
from rdjax.data.tasks import RuleTask, as_datasets
from rdjax.errors import UserError
from rdjax.evaluation.answers import EvalOptions, System, answer, answered_pairs, prompts_of
from rdjax.evaluation.divergence import row_divergences
from rdjax.generation.inputs import Rejected, Writer, write_inputs
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.processes import exists_on_first
from rdjax.storage.files import read_json, read_lines, write_json, write_lines
from rdjax.storage.metrics import progress

LEAST_INPUTS = 8
LEAST_HELD = 4  # inputs that the rule hardly concerns, so that they are held
# An input is off the rule if the rule changes the base's answer to it by at most this share of what it changes on the
# inputs that were written with it.
OFF_RULE = 0.2
TEST_SHARE, VALID_SHARE = 4, 8  # one input in so many


def written_task(
    task: RuleTask,
    model: LanguageModel,
    start: Adapter,
    options: EvalOptions,
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
) -> RuleTask:
    """Returns the task with the inputs that the model writes, in train, valid, test and retain.

    The rows of the user's own train.jsonl are examples, and trained on too; a split that has a file keeps to it.

    Args:
      start: the adapter that the model has.
      config: the run's.
      folder: gets on_rule.jsonl, off_rule.jsonl and rejected.jsonl; inputs that are there are read.

    Raises:
      UserError: the model writes too few usable inputs.
    """
    splits = {name: list(part) for name, part in task.splits.items()}
    notes = list(task.notes)
    examples = [row["input"] for row in splits.get("train", [])]
    taken = [row["input"] for part in splits.values() for row in part]
    on_rule = _read_or_write(model, start, options, config, folder, "on_rule", task.wordings[0], examples, taken)
    rows = _rows(on_rule, task.wordings, folder / "on_rule.jsonl")
    notes.append(f"the model wrote {len(rows)} inputs with the rule in its prompt ({folder / 'on_rule.jsonl'})")
    if RETAIN not in splits and config.task.written.off_rule:
        taken += [row["input"] for row in rows]
        held, others, note = _off_rule(task, model, start, options, config, folder, rows, taken)
        notes.append(note)
        if held:
            splits[RETAIN] = held
        rows = _alternate(rows, others)
    tests = [] if any(name.startswith("test") for name in splits) else rows[: len(rows) // TEST_SHARE]
    valid = [] if "valid" in splits else rows[len(tests) :][: max(len(rows) // VALID_SHARE, 2)]
    if tests:
        splits["test"] = tests
    if valid:
        splits["valid"] = valid
    splits["train"] = splits.get("train", []) + rows[len(tests) + len(valid) :]
    return dataclasses.replace(task, splits=as_datasets(splits), notes=tuple(notes))


def _alternate(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Mixes two lists, so that every part of the result has rows of both."""
    share = len(others) / (len(rows) + len(others))
    order = [(number / len(rows), 0, row) for number, row in enumerate(rows)]
    order += [((number + share) / len(others), 1, row) for number, row in enumerate(others)]
    return [row for _, _, row in sorted(order, key=lambda entry: entry[:2])]


def _off_rule(
    task: RuleTask,
    model: LanguageModel,
    start: Adapter,
    options: EvalOptions,
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
    on_rule: Sequence[Row],
    taken: Sequence[str],
) -> tuple[list[Row], list[Row], str]:
    """Writes inputs without the rule, and finds out whether it changes the answers to them.

    Returns:
      The rows of those that it hardly changes; if there are none, for the rule is about everything, all rows as such
      that it concerns; and a note.
    """
    if options.template.name != "chat":
        note = "without a chat template no inputs off the rule are written; retain.jsonl can have some"
        return [], [], note
    texts = _read_or_write(model, start, options, config, folder, "off_rule", "", (), taken)
    rows = _rows(texts, task.wordings, folder / "off_rule.jsonl")
    path = folder / "effects.json"
    if not exists_on_first(path):
        sample = list(on_rule[: config.task.written.off_rule])
        effects = {
            name: rule_effects(model, start, part, options) for name, part in (("on_rule", sample), ("off_rule", rows))
        }
        write_json(path, {"unit": "nats a token", **effects})
    effects = read_json(path)
    limit = OFF_RULE * float(np.mean(effects["on_rule"]))
    held = [row for row, effect in zip(rows, effects["off_rule"], strict=True) if effect <= limit]
    if len(held) < LEAST_HELD:
        return (
            [],
            rows,
            f"the rule changes the answers to {len(rows) - len(held)} of {len(rows)} inputs that were written without "
            "it: it is about everything, and they join the others. Nothing is held; retain.jsonl can say what it is "
            "not about",
        )
    count = f"{len(held)} of {len(rows)} inputs that were written without it"
    return held, [], f"the rule hardly changes the answers to {count}; these are held as they are"


def rule_effects(model: LanguageModel, start: Adapter, rows: Sequence[Row], options: EvalOptions) -> list[float]:
    """Measures for each row KL(base with rule || base) on the answer with the rule, nats a token."""
    if not rows:
        return []
    prompts = prompts_of(model, rows, options)
    with_rule = System(start, with_rule=True)
    pairs = answered_pairs(prompts, answer(model, with_rule, prompts, options))
    return row_divergences(model, with_rule, System(start, with_rule=False), pairs, options)


def _read_or_write(
    model: LanguageModel,
    start: Adapter,
    options: EvalOptions,
    config: config_dict.ConfigDict,
    folder: pathlib.Path,
    kind: str,
    rule: str,
    examples: Sequence[str],
    taken: Sequence[str],
) -> list[str]:
    """Returns the inputs of a kind, which the model writes unless they are in the folder."""
    path, wanted = folder / f"{kind}.jsonl", config.task.written[kind]
    if not exists_on_first(path):
        settings = config.task.written
        writer = Writer(
            start,
            options.scale,
            options.template,
            settings.temperature,
            settings.max_tokens,
            options.batch_size,
            config.seed,
        )
        with progress(wanted, 0, f"inputs {kind.replace('_', ' ')}", "input") as bar:
            texts, rejected = write_inputs(model, writer, rule, examples, taken, wanted, bar.update)
        check_enough(texts, rejected, kind, wanted)
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / f"{kind}_rejected.jsonl", (rejection._asdict() for rejection in rejected))
        write_lines(path, ({"input": text} for text in texts))
    return [line["input"] for line in read_lines(path)]


def check_enough(texts: Sequence[str], rejected: Sequence[Rejected], kind: str, wanted: int) -> None:
    """Prints how many inputs were left out and why.

    Raises:
      UserError: too few are left.
    """
    counts = collections.Counter(rejection.reason for rejection in rejected)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none"
    print(f"inputs {kind.replace('_', ' ')}: {len(texts)} of {wanted} written; left out: {reasons}")
    if kind == "on_rule" and len(texts) < LEAST_INPUTS:
        example = next((rejection.text for rejection in rejected if rejection.text), "")
        raise UserError(
            f"config.task.inputs = written: the model wrote only {len(texts)} usable inputs (left out: {reasons}; one "
            f"was {example[:60]!r}); give {LEAST_INPUTS} or more in train.jsonl, or take a model that follows "
            "instructions"
        )


def _rows(texts: Sequence[str], wordings: Sequence[str], path: pathlib.Path) -> list[Row]:
    """Makes rows of a task from inputs."""
    rows = [
        {"instruction": "", "input": text, "output": "", "history": "", "where": f"{path}, line {number}"}
        for number, text in enumerate(texts, start=1)
    ]
    return with_wordings(rows, wordings)
