"""Trains an adapter for each rule: `python -m rdjax.train_each --config=configs/rule.py --workdir=runs/each`.

The task's folder has a folder for each rule in rules/ (docs/own_rule.md). The adapters train at once, side by side over
one copy of the model; every rule gets a folder laid out like that of `rdjax.train`. Rules with equally many rows train
together; others follow. The same command, run again, resumes.
"""

import copy
import functools
import pathlib
import sys

from absl import flags
from ml_collections import config_dict

from rdjax.data.rule_folders import has_rule_folders, rule_folders
from rdjax.data.shapes import in_batches
from rdjax.data.tasks import RuleTask, load_task
from rdjax.errors import UserError
from rdjax.evaluation.results import results_table
from rdjax.models.load import LanguageModel, load_model
from rdjax.parallel.mesh import make_mesh
from rdjax.parallel.processes import exists_on_first, exit_on_sigterm
from rdjax.report.page import PAGE, write_page
from rdjax.run import cli, run_flags
from rdjax.run.distil import write_run_card
from rdjax.run.experiment import Run
from rdjax.run.fingerprints import check_same_inputs, fingerprint_inputs
from rdjax.run.prepare import check_run, prepare, task_judges
from rdjax.run.side_by_side import CHECKPOINTS, checkpoint_folder, finish_runs, prepare_runs
from rdjax.storage.files import user_path
from rdjax.storage.records import Results, read_record, write_record
from rdjax.storage.workdir import RESULTS, check_workdir, open_workdir

MODULE = "rdjax.train_each"
SUMMARY = "summary.json"

_TOGETHER = flags.DEFINE_integer(
    "together", 16, "The most adapters that train at once; memory bounds it.", lower_bound=1
)


def rule_config(config: config_dict.ConfigDict, name: str) -> config_dict.ConfigDict:
    """Returns the config of one rule's run, without the judges of other rules' splits."""
    own = copy.deepcopy(config)
    own.task.rules = (name,)
    others = tuple(f"{other}/" for other in rule_folders(user_path(config.task.root)) if other != name)
    own.eval.judges = tuple(choice for choice in config.eval.judges if not choice.startswith(others))
    return own


def check_rules(config: config_dict.ConfigDict) -> tuple[list[str], RuleTask]:
    """Checks the config and the files of every rule before the first is trained; returns the rules' names and task.

    Raises:
      UserError: names what is wrong.
    """
    check_run(config)
    root = user_path(config.task.root)
    if config.task.name != "rule" or not has_rule_folders(root):
        raise UserError(f"config.task.root: {root} has no folder rules/; accepted: a folder of several rules")
    names = list(config.task.rules) or list(rule_folders(root))
    if CHECKPOINTS in names:
        raise UserError(f"{root / 'rules' / CHECKPOINTS}: the workdir has a folder of this name; accepted: another")
    task = load_task(config.task, config.seed)
    task_judges(config, task)
    return names, task


def train_each(config: config_dict.ConfigDict, workdir: pathlib.Path, together: int) -> dict[str, str]:
    """Trains and evaluates an adapter for each rule.

    Args:
      together: the most that train at once.

    Returns:
      The errors, by the rules' names.
    """
    names, task = check_rules(config)
    check_workdir(workdir, config)
    fingerprint = fingerprint_inputs(config, task)
    check_same_inputs(config, fingerprint)
    open_workdir(workdir, config, MODULE, fingerprint)
    failures: dict[str, str] = {}
    model = None
    for part in in_batches(names, together):
        if all([exists_on_first(workdir / name / RESULTS) for name in part]):  # a list: every process asks for all
            continue
        print(f"{len(part)} of {len(names)} rules: {', '.join(part)}")
        model = model or load_model(config.model.path, config.model.dtype, make_mesh(config.mesh), config.model.int8)
        runs, unprepared = prepare_runs(part, functools.partial(prepare_rule, config, workdir, model), workdir)
        failures |= unprepared | finish_runs(runs, checkpoint_folder(workdir, runs))
        for run in runs:
            if run.workdir.name not in failures:
                finish_folder(run)
    write_record(workdir / SUMMARY, merged_results([workdir / name for name in names if name not in failures]))
    return failures


def prepare_rule(config: config_dict.ConfigDict, workdir: pathlib.Path, model: LanguageModel, name: str) -> Run:
    """Prepares the run of one rule."""
    return prepare(rule_config(config, name), workdir / name, model, MODULE)


def finish_folder(run: Run) -> None:
    """Writes the card and the page of a rule's run."""
    write_run_card(run)
    if not exists_on_first(run.workdir / PAGE):
        write_page(run.workdir)


def merged_results(folders: list[pathlib.Path]) -> dict[str, dict]:
    """Returns the scores of all rules in the form of eval.json; what none of them is about is of each, too."""
    merged: dict[str, dict] = {"splits": {}, "metric": {}}
    for folder in folders:
        results = read_record(folder / RESULTS, Results)
        for part, own in merged.items():
            own |= {
                split if "/" in split else f"{folder.name}/{split}": value for split, value in results[part].items()
            }
    return merged


def main(argv: list[str]) -> None:
    """Trains the adapters; ends with exit status 1 where one failed."""
    cli.no_arguments(argv)
    config, workdir = run_flags.config("configs/rule.py"), run_flags.workdir()
    exit_on_sigterm()
    failures = train_each(config, workdir, _TOGETHER.value)
    summary = read_record(workdir / SUMMARY, Results)
    if summary["splits"]:
        print(results_table(summary))
    print(f"wrote {workdir / SUMMARY}, and a folder for each rule")
    if failures:
        named = "; ".join(f"{name}: {error}" for name, error in failures.items())
        print(f"failed: {named}. The same command tries them again.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
