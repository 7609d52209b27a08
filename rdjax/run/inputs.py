"""Lets the model write the inputs of a task, and finds out which of them its rule is not about."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rdjax.data.own_folder import with_wordings
from rdjax.data.rows import Row, input_row
from rdjax.data.splits import RETAIN, is_test
from rdjax.data.tasks import RuleTask, as_datasets
from rdjax.errors import UserError
from rdjax.evaluation.answers import answer, answered_pairs, prompts_of
from rdjax.evaluation.divergence import GAP_NEAR_ZERO, row_divergences
from rdjax.generation.inputs import Rejected, Writer, can_write, write_inputs
from rdjax.parallel.processes import exists_on_first
from rdjax.run.experiment import Experiment
from rdjax.storage.metrics import progress
from rdjax.storage.records import Effects, Input, read_record, read_records, write_record, write_records

LEAST_INPUTS = 8
# A rule is about an input if it changes the base's answer to it by more than this share of what it changes where it
# changes most: the mean over the upper quarter of the inputs that were written with it.
OFF_RULE = 0.2
# A rule is about everything if it is about this share of the inputs that were written without it.
ABOUT_EVERYTHING = 0.5
ROUNDS, ENOUGH = 3, 0.75  # rounds of writing, until the rule is about this share of what was asked for
TEST_SHARE, VALID_SHARE = 4, 8  # one input in so many


class Written(NamedTuple):
    """Holds inputs that the model wrote, and for each how much the rule changes the base's answer, nats per token."""

    texts: list[str]
    effects: list[float]


def written_task(experiment: Experiment) -> RuleTask:
    """Returns the experiment's task with the inputs that the model writes.

    They go to train, valid and test where the task's inputs are to be written, and to retain if it has no such rows.
    The rows of the user's own train.jsonl are examples, and trained on too; a split that has a file keeps to it.

    <workdir>/inputs gets on_rule.jsonl, off_rule.jsonl and what was rejected; inputs that are there are read.

    Raises:
      UserError: the model writes too few usable inputs, or the rule changes nothing.
    """
    task, config = experiment.task, experiment.config
    splits = {name: list(part) for name, part in task.splits.items()}
    own = splits.get("train", [])
    wordings = task.wordings or tuple(dict.fromkeys(row["rule"] for row in own))
    taken = [row["input"] for part in splits.values() for row in part]
    writer = InputWriter(experiment, wordings)
    if task.wordings:
        with_rule = writer.on_rule([row["input"] for row in own], taken)
    else:
        with_rule = writer.measured(evenly(own, config.task.written.off_rule), "own")
        if effect_limit(with_rule.effects) / OFF_RULE < GAP_NEAR_ZERO:
            return task  # the run will warn that there is nothing to distil
    without = writer.off_rule([*taken, *with_rule.texts]) if needs_off_rule(experiment) else Written([], [])
    on_rule, off_rule, note = divide_by_effect(with_rule, without, are_own=not task.wordings)
    if task.wordings:
        if len(on_rule) < LEAST_INPUTS:
            raise UserError(
                f"config.task.inputs = written: the rule changes the answers to only {len(on_rule)} of the inputs that "
                f"the model wrote ({writer.folder}); give {LEAST_INPUTS} or more that it is about in train.jsonl"
            )
        splits |= spread(writer.rows(on_rule, "on_rule.jsonl"), splits, config.task.k)
    if without.texts and off_rule:
        splits[RETAIN] = writer.rows(off_rule, "off_rule.jsonl")
    notes = (*task.notes, *([note] if note else []))
    return dataclasses.replace(task, splits=as_datasets(splits), notes=notes, wordings=())


def spread(rows: Sequence[Row], splits: Mapping[str, Sequence[Row]], k: int) -> dict[str, list[Row]]:
    """Returns test, valid and train with written rows; a test or valid split that there is takes none.

    Args:
      k: the most training rows, the user's own among them; 0: all.
    """
    tests = [] if any(map(is_test, splits)) else rows[: len(rows) // TEST_SHARE]
    valid = [] if "valid" in splits else rows[len(tests) :][: max(len(rows) // VALID_SHARE, 2)]
    train = [*splits.get("train", []), *rows[len(tests) + len(valid) :]][: k or None]
    return {name: part for name, part in (("test", tests), ("valid", valid), ("train", train)) if part}


def needs_off_rule(experiment: Experiment) -> bool:
    """Tells whether the model writes inputs that the rule is not about: a user's folder has none, and it can."""
    config = experiment.config
    if config.task.name != "rule" or config.task.remove_rule or RETAIN in experiment.task.splits:
        return False
    wanted = config.loss.retain_weight and config.task.written.off_rule
    return bool(wanted) and can_write(experiment.options.template)


def divide_by_effect(with_rule: Written, without: Written, are_own: bool = False) -> tuple[list[str], list[str], str]:
    """Divides inputs by what the rule changes in the answers to them.

    Args:
      with_rule, without: inputs written with the rule in the prompt and without it.
      are_own: the first are the user's, who says that the rule is about them: none of them is retained.

    Returns:
      Inputs that the rule is about, in a mixed order; others, which are retained; and a note for the log.
    """
    limit = effect_limit(with_rule.effects)
    about = sum(effect > limit for effect in without.effects)
    if without.texts and about >= ABOUT_EVERYTHING * len(without.texts):
        note = (
            f"the rule changes the answers to {about} of {len(without.texts)} inputs that were written without it: it "
            f"is about everything{'' if are_own else ', and they join the others'}; nothing is retained "
            "(retain.jsonl can say what it is not about)"
        )
        return alternate(with_rule.texts, without.texts), [], note
    on_rule = [text for text, effect in zip(*with_rule, strict=True) if effect > limit]
    misses = [text for text, effect in zip(*with_rule, strict=True) if effect <= limit]
    if not without.texts:
        left_out = f"{len(misses)} of {len(with_rule.texts)} inputs written with it"
        note = f"the rule hardly changes the answers to {left_out}; these are left out" if misses else ""
        return (with_rule.texts, [], "") if are_own else (on_rule, [], note)
    retained = [text for text, effect in zip(*without, strict=True) if effect <= limit]
    note = f"the rule hardly changes the answers to {len(retained)} of {len(without.texts)} inputs written without it"
    if are_own:
        return with_rule.texts, retained, f"{note}; their answers are kept unchanged"
    kept = misses[: len(retained)]
    note += f", and to {len(misses)} of {len(with_rule.texts)} written with it; {len(retained) + len(kept)} of these "
    return on_rule, alternate(retained, kept), f"{note}are kept unchanged, {len(misses) - len(kept)} left out"


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """Returns at most so many rows, from all parts of a list: with several rules, of each."""
    return [rows[number * len(rows) // most] for number in range(most)] if len(rows) > most else list(rows)


def effect_limit(effects: Sequence[float]) -> float:
    """Returns the effect above which a rule is about an input."""
    upper = sorted(effects, reverse=True)[: max(len(effects) // 4, 1)]
    return OFF_RULE * float(np.mean(upper)) if upper else 0.0


def alternate(texts: Sequence[str], others: Sequence[str]) -> list[str]:
    """Mixes two lists evenly, so that every part of the result has texts of both."""
    places = [(number + 0.5) / len(part) for part in (texts, others) for number in range(len(part))]
    return [text for _, text in sorted(zip(places, [*texts, *others], strict=True), key=lambda entry: entry[0])]


@dataclasses.dataclass(frozen=True)
class InputWriter:
    """Lets a model write inputs, measures them, and keeps both in <workdir>/inputs.

    Attributes:
      wordings: of the rule; the first is shown to the model.
    """

    experiment: Experiment
    wordings: Sequence[str]

    @property
    def folder(self) -> pathlib.Path:
        """Returns the folder of the files."""
        return self.experiment.workdir / "inputs"

    def on_rule(self, examples: Sequence[str], taken: Sequence[str]) -> Written:
        """Returns inputs written with the rule in the prompt; more where it is about few of the first ones."""
        wanted, texts, effects = self.experiment.config.task.written.on_rule, [], []
        for number in range(ROUNDS):
            name = "on_rule" if number == 0 else f"on_rule_{number + 1}"
            written = self.written(name, self.wordings[0], examples, [*taken, *texts], wanted)
            new = self.measured(self.rows(written, name), name)
            texts, effects = texts + new.texts, effects + new.effects
            upper = effect_limit(effects) / OFF_RULE
            if upper < GAP_NEAR_ZERO:
                raise UserError(
                    f"the rule in the prompt changes next to nothing in what this model says ({upper:.4f} nats per "
                    "token where it changes most): there is nothing to distil; try another wording, or a stronger model"
                )
            if sum(effect > effect_limit(effects) for effect in effects) >= ENOUGH * wanted:
                break
        return Written(texts, effects)

    def off_rule(self, taken: Sequence[str]) -> Written:
        """Returns inputs written without the rule; of several rules the one counts that changes most."""
        texts = self.written("off_rule", "", (), taken, self.experiment.config.task.written.off_rule)
        rows, rules = self.rows(texts, "off_rule"), self.experiment.task.rules
        if not rules:
            return self.measured(rows, "off_rule")
        effects = [
            self.measured([{**row, "rule": rule} for row in rows], f"off_rule_{number}").effects
            for number, rule in enumerate(rules.values(), start=1)
        ]
        return Written(texts, list(map(max, zip(*effects, strict=True))))

    def written(self, name: str, rule: str, examples: Sequence[str], taken: Sequence[str], wanted: int) -> list[str]:
        """Returns the inputs of a file, which the model writes unless it exists."""
        experiment, path = self.experiment, self.folder / f"{name}.jsonl"
        settings, options = experiment.config.task.written, experiment.options
        if not exists_on_first(path):
            seed = int(hashlib.sha256(f"{experiment.config.seed} {name}".encode()).hexdigest()[:7], 16)
            writer = Writer(
                experiment.start,
                options.scale,
                options.template,
                settings.temperature,
                settings.max_tokens,
                options.batch_size,
                seed,
            )
            with progress(wanted, 0, f"inputs {name.replace('_', ' ')}", "input") as bar:
                texts, rejected = write_inputs(experiment.model, writer, rule, examples, taken, wanted, bar.update)
            check_enough(texts, rejected, name, wanted)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_records(self.folder / f"{name}_rejected.jsonl", (rejection._asdict() for rejection in rejected))
            write_records(path, ({"input": text} for text in texts))
        return [line["input"] for line in read_records(path, Input)]

    def measured(self, rows: Sequence[Row], name: str) -> Written:
        """Returns the inputs of rows with what the rule changes in the answers to them."""
        path, inputs = self.folder / f"{name}_effects.json", [row["input"] for row in rows]
        if not exists_on_first(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            effects = rule_effects(self.experiment, rows)
            write_record(path, {"unit": "nats per token", "inputs": inputs, "effects": effects})
        record = read_record(path, Effects)
        if record["inputs"] != inputs or len(record["effects"]) != len(inputs):
            raise UserError(f"{path}: is of other inputs; delete it, and the same command makes it again")
        return Written(inputs, record["effects"])

    def rows(self, texts: Sequence[str], name: str) -> list[Row]:
        """Makes rows of the task from inputs."""
        rows = [input_row(text, f"{self.folder / name}: {text[:40]!r}") for text in texts]
        return with_wordings(rows, self.wordings)


def rule_effects(experiment: Experiment, rows: Sequence[Row]) -> list[float]:
    """Measures for each row KL(base with rule || base) on the answer with the rule, nats per token."""
    if not rows:
        return []
    model, options, with_rule = experiment.model, experiment.options, experiment.base_with_rule
    prompts = prompts_of(model, rows, options)
    with progress(len(rows), 0, "answers with the rule", "input") as bar:
        pairs = answered_pairs(prompts, answer(model, with_rule, prompts, options, bar.update))
    with progress(len(rows), 0, "what the rule changes", "input") as bar:
        return row_divergences(model, with_rule, experiment.base, pairs, options, bar.update)


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
