"""Distils a rule: `python -m rdjax.train --config=configs/quickstart.py --workdir=runs/quickstart`.

Trains, exports and evaluates, in that order. Running the same command again goes on where it stopped.
"""

from rdjax.config import check_config
from rdjax.evaluation.scores import table
from rdjax.parallel.processes import exists_on_first, exit_on_sigterm
from rdjax.run import cli, experiment
from rdjax.run.pipeline import FINISHED, evaluate_all, train_all
from rdjax.run.prepare import prepare, report_start
from rdjax.storage.files import read_json, write_json


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    config = experiment.config("configs/quickstart.py")
    check_config(config)
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
    from rdjax.report.page import (  # here, for to import the drawing takes a while that is not needed before
        PAGE,
        write_page,
    )

    if not exists_on_first(run.workdir / PAGE):
        print(f"wrote {write_page(run.workdir)}")
    run.log.close()
    results = read_json(finished)["splits"]
    if results:
        print(table(results))


if __name__ == "__main__":
    cli.run(main)
