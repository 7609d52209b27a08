"""Distils a rule: `python -m rdjax.train --config=configs/quickstart.py --workdir=runs/quickstart`.

Trains, exports and evaluates, in that order. The same command, run again, resumes where it stopped.
"""

from rdjax.config import plain_config
from rdjax.evaluation.results import results_table
from rdjax.evaluation.verdict import advice, verdict
from rdjax.parallel.processes import exists_on_first, exit_on_sigterm
from rdjax.run import cli, experiment
from rdjax.run.pipeline import FINISHED, evaluate_all, train_all
from rdjax.run.prepare import check_run, prepare
from rdjax.run.start import report_start
from rdjax.storage.files import read_json, read_lines, write_json


def main(argv: list[str]) -> None:
    """Runs an experiment, or reports that it is finished."""
    cli.no_arguments(argv)
    config = experiment.config("configs/quickstart.py")
    check_run(config)
    exit_on_sigterm()
    run = prepare(config, experiment.workdir())
    finished = run.workdir / FINISHED
    if exists_on_first(finished):
        print(f"{run.workdir} is finished:")
    else:
        report_start(run)
        (adapters,) = train_all([run], run.workdir / "checkpoints")
        write_json(finished, evaluate_all(run, adapters))
        print(f"wrote {run.workdir / 'adapter'}, {finished}")
    # Imported here: it loads matplotlib, which would delay the start of every run.
    from rdjax.report.page import PAGE, write_page

    if not exists_on_first(run.workdir / PAGE):
        print(f"wrote {write_page(run.workdir)}")
    run.log.close()
    results = read_json(finished)
    if results["splits"]:
        print(results_table(results))
        lines = read_lines(run.workdir / "metrics.jsonl")
        for sentence in (*verdict(results), *advice(results, lines, plain_config(run.config))):
            print(sentence)


if __name__ == "__main__":
    cli.run(main)
