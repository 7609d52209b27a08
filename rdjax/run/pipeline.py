"""Runs the stages of a run in order: trains every adapter that it needs, exports and evaluates them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rdjax.config import METHODS, baselines, needs_enhanced
from rdjax.data.splits import is_evaluated
from rdjax.data.tasks import RuleTask
from rdjax.distillation.stage import Trained
from rdjax.errors import UserError
from rdjax.evaluation.answers import System
from rdjax.evaluation.judges import judges_of
from rdjax.evaluation.scores import JudgeError, evaluate, flip_rates, judge_all
from rdjax.models.lora import Adapter
from rdjax.parallel.processes import exit_if_signalled
from rdjax.run.adapter_folder import write_adapter
from rdjax.run.experiment import Experiment, Run
from rdjax.run.practice import run_practice
from rdjax.run.row_notes import inputs_trained_on
from rdjax.run.stages import ENHANCED, delete_signals, train_adapters
from rdjax.storage.metrics import progress_bar
from rdjax.storage.records import RunRecord, read_record
from rdjax.storage.workdir import PREDICTIONS, RECORD


def export_adapters(runs: Sequence[Run], name: str, adapters: Sequence[Adapter]) -> None:
    """Writes an adapter of every run to `adapter/` (the student's) or `adapters/<name>/`."""
    for run, adapter in zip(runs, adapters, strict=True):
        folder = run.workdir / ("adapter" if name == "student" else f"adapters/{name}")
        write_adapter(folder, adapter, run.spec, run.model, run.options.template)


def train_all(runs: Sequence[Run], folder: pathlib.Path) -> list[dict[str, Adapter]]:
    """Trains and exports every adapter that the method and the evaluated systems need.

    Args:
      runs: they differ in their seed or their task; each has as many pairs, and is validated alike.
      folder: of the checkpoints.

    Returns:
      The adapters of each run, by name.
    """
    config = runs[0].config
    starts = [run.start for run in runs]
    methods = {"student": config.method} | {name: name for name in baselines(config)}
    adapters: dict[str, list[Adapter]] = {}
    if needs_enhanced(config):
        adapters[ENHANCED] = adapters_of(train_adapters(runs, ENHANCED, "inst_tune_with_rule", starts, folder))
        export_adapters(runs, ENHANCED, adapters[ENHANCED])
    for name, method in methods.items():
        same_start = name != "student" or not config.model.student_adapter
        if method == "inst_tune_with_rule" and ENHANCED in adapters and same_start:
            adapters[name] = adapters[ENHANCED]  # the same training under another name
        else:
            teachers = adapters[ENHANCED] if method == "rule_distill_enhanced" else starts
            trained = train_adapters(runs, name, method, teachers, folder)
            if name == "student":
                trained = run_practice(runs, trained, teachers, folder)
            adapters[name] = adapters_of(trained)
        export_adapters(runs, name, adapters[name])
        exit_if_signalled()
    delete_signals(folder)
    return [{name: trained[number] for name, trained in adapters.items()} for number in range(len(runs))]


def adapters_of(trained: Sequence[Trained]) -> list[Adapter]:
    """Returns the adapters of what was trained."""
    return [one.adapter for one in trained]


def systems_of(run: Run, adapters: dict[str, Adapter]) -> dict[str, System]:
    """Returns the systems to evaluate, by name."""
    known = {
        "base": run.base,
        "base_with_rule": run.base_with_rule,
        "student": System(adapters["student"], with_rule=False),
        "student_with_rule": System(adapters["student"], with_rule=True),
        "enhanced_with_rule": System(adapters.get(ENHANCED), with_rule=True),
        run.config.method: System(adapters["student"], with_rule=False),
    }
    known |= {name: System(adapter, with_rule=False) for name, adapter in adapters.items() if name in METHODS}
    return {name: known[name] for name in run.config.eval.systems}


def teachers_of(run: Run, adapters: dict[str, Adapter], systems: Mapping[str, System]) -> dict[str, System]:
    """Returns the enhanced teacher of the systems that were distilled from it."""
    distilled = {"rule_distill_enhanced"} | ({"student"} if run.config.method == "rule_distill_enhanced" else set())
    return {name: System(adapters[ENHANCED], with_rule=True) for name in systems if name in distilled}


def evaluate_all(run: Run, adapters: dict[str, Adapter]) -> dict[str, Any]:
    """Scores every system on every test and retained split; returns the content of eval.json."""
    systems = systems_of(run, adapters)
    return evaluate_systems(run, systems, teachers_of(run, adapters, systems))


def evaluate_systems(
    experiment: Experiment, systems: Mapping[str, System], teachers: Mapping[str, System] | None = None
) -> dict[str, Any]:
    """Scores systems on every test and retained split; returns the content of eval.json.

    Args:
      teachers: of the systems whose teacher is not the base with the rule.

    Raises:
      UserError: a judge fails; the predictions are kept.
    """
    limit, task = experiment.config.eval.limit, experiment.task
    splits = {name: part for name, part in task.splits.items() if is_evaluated(name)}
    splits = {name: part.select(range(min(limit or len(part), len(part)))) for name, part in splits.items()}
    results: dict[str, Any] = {"splits": {}, "metric": {}}
    try:
        if splits and systems:
            total = sum(map(len, splits.values())) * len(systems)
            with progress_bar(total, 0, "answers", "row") as bar:

                def on_batch(rows: int) -> None:
                    bar.update(rows)
                    exit_if_signalled()

                results = evaluate(
                    experiment.model,
                    splits,
                    systems,
                    experiment.start,
                    experiment.options,
                    experiment.judges,
                    experiment.workdir / PREDICTIONS,
                    on_batch,
                    teachers,
                )
        else:
            print("no test split or no system: nothing to evaluate")
        flips = flip_rates(experiment.workdir / PREDICTIONS, splits) if systems else {}
        found = inputs_trained_on({**task.splits, **splits})  # with the tested rows of `splits` alone (eval.limit)
        return results | {
            "rule": rule_of(task),
            "judge_errors": judge_errors(experiment),
            "flips": flips,
            "trained_on": {split: len(rows) for split, rows in found.items() if split in splits},
        }
    except JudgeError as error:
        command = read_record(experiment.workdir / RECORD, RunRecord)["command"]
        raise UserError(f"{error}; the predictions are kept, and this command resumes from them: {command}") from error


def rule_of(task: RuleTask) -> str:
    """Returns the first wording of a task's rule; of several rules, of each behind its name."""
    if task.rules:
        return "\n\n".join(f"{name}: {rule}" for name, rule in task.rules.items())
    rules = (row["rule"] for part in task.splits.values() for row in part.select(range(1)))
    return next(filter(None, rules), "")  # a rule that is to be removed stands in the tests alone


def judge_errors(experiment: Experiment) -> dict[str, Any]:
    """Counts how often each split's judge is wrong on outputs that are known to be what the split asks for."""
    errors = {}
    # The judge of a split whose file is absent can be measured all the same.
    usual = judges_of(experiment.config.task.name, experiment.task.labelled, (), "")
    for split, outputs in experiment.task.labelled.items():
        judge = experiment.judges.get(split, usual[split])
        if judge.name != "exact_match":
            rows = [{"input": "", "output": output} for output in outputs]
            verdicts = judge_all(judge, split, "the training outputs", outputs, rows)
            errors[split] = {"judge": judge.name, "wrong": verdicts.count(False), "n": len(outputs)}
    return errors
