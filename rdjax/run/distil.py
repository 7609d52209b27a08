"""Runs one experiment from its config to its scores: trains, exports, evaluates."""

import pathlib

from ml_collections import config_dict

from rdjax.config import plain_config
from rdjax.evaluation.results import results_table
from rdjax.evaluation.verdict import advice, verdict
from rdjax.parallel.processes import exists_on_first, is_first
from rdjax.run.card import CARD, base_name, card_text, write_card
from rdjax.run.pipeline import FINISHED, evaluate_all, train_all
from rdjax.run.prepare import Run, prepare
from rdjax.run.start import report_start
from rdjax.storage.files import read_json, read_lines, write_json
from rdjax.storage.workdir import RECORD


def run_experiment(config: config_dict.ConfigDict, workdir: pathlib.Path, module: str = "rdjax.train") -> Run:
    """Runs what is left of an experiment; one that is finished is only read.

    Args:
      module: the command that runs, for the record.
    """
    run = prepare(config, workdir, module=module)
    finished = workdir / FINISHED
    if exists_on_first(finished):
        print(f"{workdir} is finished:")
    else:
        report_start(run)
        (adapters,) = train_all([run], workdir / "checkpoints")
        write_json(finished, evaluate_all(run, adapters))
        print(f"wrote {workdir / 'adapter'}, {finished}")
    if is_first() and not (workdir / "adapter" / CARD).exists():
        base = base_name(run.model.name, config.model.path)
        text = card_text(read_json(finished), read_json(workdir / RECORD), base, run.config.task.to_dict())
        write_card(workdir / "adapter", text)
    run.log.close()
    return run


def result_lines(run: Run) -> list[str]:
    """Returns the table of a finished run, what it means in words, and what to try where that is little."""
    results = read_json(run.workdir / FINISHED)
    if not results["splits"]:
        return []
    lines = read_lines(run.workdir / "metrics.jsonl")
    return [results_table(results), *verdict(results), *advice(results, lines, plain_config(run.config))]
