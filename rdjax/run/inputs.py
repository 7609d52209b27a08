"""Lets the model write the inputs of a task, measures what the rule changes in the answers, and keeps both."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdjax.data.own_folder import with_wordings
from rdjax.data.rows import Row, input_row
from rdjax.data.splits import RETAIN, is_test
from rdjax.data.tasks import RuleTask, as_datasets
from rdjax.errors import UserError
from rdjax.evaluation.divergence import GAP_NEAR_ZERO
from rdjax.generation.inputs import Rejected, Writer, can_write, write_inputs
from rdjax.parallel.processes import exists_on_first
from rdjax.run.experiment import Experiment
from rdjax.run.rule_effect import OFF_RULE, MeasuredInputs, divide_by_effect, effect_limit, rule_effects
from rdjax.storage.metrics import progress_bar
from rdjax.storage.records import Effects, Input, read_record, read_records, write_record, write_records

LEAST_INPUTS = 8
ROUNDS, ENOUGH = 3, 0.75  # rounds of writing, until the rule is about this share of what was asked for
TEST_SHARE, VALID_SHARE = 4, 8  # one input in so many


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
        with_rule = writer.write_on_rule([row["input"] for row in own], taken)
    else:
        with_rule = writer.measure(evenly(own, config.task.written.off_rule), "own")
        if effect_limit(with_rule.effects) / OFF_RULE < GAP_NEAR_ZERO:
            return task  # the run will warn that there is nothing to distil
    without = (
        writer.write_off_rule([*taken, *with_rule.texts]) if needs_off_rule(experiment) else MeasuredInputs([], [])
    )
    on_rule, off_rule, note = divide_by_effect(with_rule, without, are_own=not task.wordings)
    if task.wordings:
        if len(on_rule) < LEAST_INPUTS:
            raise UserError(
                f"config.task.inputs = written: the rule changes the answers to only {len(on_rule)} of the inputs that "
                f"the model wrote ({writer.folder}); give {LEAST_INPUTS} or more that it is about in train.jsonl"
            )
        splits |= spread(writer.make_rows(on_rule, "on_rule.jsonl"), splits, config.task.k)
    if without.texts and off_rule:
        splits[RETAIN] = writer.make_rows(off_rule, "off_rule.jsonl")
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


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """Returns at most so many rows, from all parts of a list: with several rules, of each."""
    return [rows[number * len(rows) // most] for number in range(most)] if len(rows) > most else list(rows)


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

    def write_on_rule(self, examples: Sequence[str], taken: Sequence[str]) -> MeasuredInputs:
        """Returns inputs written with the rule in the prompt; more where it is about few of the first ones."""
        wanted, texts, effects = self.experiment.config.task.written.on_rule, [], []
        for number in range(ROUNDS):
            name = "on_rule" if number == 0 else f"on_rule_{number + 1}"
            written = self.write_or_read(name, self.wordings[0], examples, [*taken, *texts], wanted)
            new = self.measure(self.make_rows(written, name), name)
            texts, effects = texts + new.texts, effects + new.effects
            upper = effect_limit(effects) / OFF_RULE
            if upper < GAP_NEAR_ZERO:
                raise UserError(
                    f"the rule in the prompt changes next to nothing in what this model says ({upper:.4f} nats per "
                    "token where it changes most): there is nothing to distil; try another wording, or a stronger model"
                )
            if sum(effect > effect_limit(effects) for effect in effects) >= ENOUGH * wanted:
                break
        return MeasuredInputs(texts, effects)

    def write_off_rule(self, taken: Sequence[str]) -> MeasuredInputs:
        """Returns inputs written without the rule; of several rules the one counts that changes most."""
        texts = self.write_or_read("off_rule", "", (), taken, self.experiment.config.task.written.off_rule)
        rows, rules = self.make_rows(texts, "off_rule"), self.experiment.task.rules
        if not rules:
            return self.measure(rows, "off_rule")
        effects = [
            self.measure([{**row, "rule": rule} for row in rows], f"off_rule_{number}").effects
            for number, rule in enumerate(rules.values(), start=1)
        ]
        return MeasuredInputs(texts, list(map(max, zip(*effects, strict=True))))

    def write_or_read(
        self, name: str, rule: str, examples: Sequence[str], taken: Sequence[str], wanted: int
    ) -> list[str]:
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
            with progress_bar(wanted, 0, f"inputs {name.replace('_', ' ')}", "input") as bar:
                texts, rejected = write_inputs(experiment.model, writer, rule, examples, taken, wanted, bar.update)
            check_enough(texts, rejected, name, wanted)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_records(self.folder / f"{name}_rejected.jsonl", (rejection._asdict() for rejection in rejected))
            write_records(path, ({"input": text} for text in texts))
        return [line["input"] for line in read_records(path, Input)]

    def measure(self, rows: Sequence[Row], name: str) -> MeasuredInputs:
        """Returns the inputs of rows with what the rule changes in the answers to them."""
        path, inputs = self.folder / f"{name}_effects.json", [row["input"] for row in rows]
        if not exists_on_first(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            effects = rule_effects(self.experiment, rows)
            write_record(path, {"unit": "nats per token", "inputs": inputs, "effects": effects})
        record = read_record(path, Effects)
        if record["inputs"] != inputs or len(record["effects"]) != len(inputs):
            raise UserError(f"{path}: is of other inputs; delete it, and the same command makes it again")
        return MeasuredInputs(inputs, record["effects"])

    def make_rows(self, texts: Sequence[str], name: str) -> list[Row]:
        """Makes rows of the task from inputs."""
        rows = [input_row(text, f"{self.folder / name}: {text[:40]!r}") for text in texts]
        return with_wordings(rows, self.wordings)


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
