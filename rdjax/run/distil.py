"""Runs one experiment from its config to its scores: trains, exports, evaluates."""

import pathlib

from ml_collections import config_dict

from rdjax.config import plain_config
from rdjax.distillation.programs import release_programs
from rdjax.evaluation.results import results_table
from rdjax.evaluation.verdict import advice, verdict
from rdjax.models.families.registry import FAMILIES
from rdjax.models.peft_files import check_undamaged
from rdjax.parallel.processes import exists_on_first, is_first
from rdjax.run.adapter_folder import read_prompt_fields
from rdjax.run.card import CARD, base_name, card_text, write_card
from rdjax.run.experiment import Run
from rdjax.run.pipeline import evaluate_all, train_all
from rdjax.run.prepare import prepare
from rdjax.run.start import report_start
from rdjax.storage.metrics import METRICS, read_metrics
from rdjax.storage.records import Results, RunRecord, read_record, write_record
from rdjax.storage.workdir import RECORD, RESULTS


def run_experiment(config: config_dict.ConfigDict, workdir: pathlib.Path, module: str = "rdjax.train") -> Run:
    """Runs what is left of an experiment; one that is finished is only read.

    Args:
      module: the command that runs, for the record.
    """
    release_programs()
    run = prepare(config, workdir, module=module)
    finished = workdir / RESULTS
    try:
        if exists_on_first(finished):
            for folder in (workdir / "adapter", *sorted(workdir.glob("adapters/*"))):
                check_undamaged(folder)
            print(f"{workdir} is finished:")
        else:
            report_start(run)
            (adapters,) = train_all([run], workdir / "checkpoints")
            write_record(finished, evaluate_all(run, adapters))
            print(f"wrote {workdir / 'adapter'}, {finished}")
        write_run_card(run)
    finally:
        run.log.close()  # a notebook goes on after an error, and may start another run
    return run


def write_run_card(run: Run) -> None:
    """Writes the model card of a finished run's adapter, unless it has one."""
    workdir = run.workdir
    if is_first() and not (workdir / "adapter" / CARD).exists():
        base = base_name(run.model.name, run.config.model.path)
        results, record = read_record(workdir / RESULTS, Results), read_record(workdir / RECORD, RunRecord)
        auto_class = FAMILIES[run.model.config.family].auto_class
        text = card_text(results, record, base, auto_class, read_prompt_fields(workdir / "adapter"))
        write_card(workdir / "adapter", text)


def result_lines(run: Run) -> list[str]:
    """Returns the table of a finished run, what it means in words, and what to try where that is little."""
    results = read_record(run.workdir / RESULTS, Results)
    if not results["splits"]:
        return []
    lines = read_metrics(run.workdir / METRICS)
    return [results_table(results), *verdict(results), *advice(results, lines, plain_config(run.config))]
