"""Distils a rule: `python -m rdjax.train --config=configs/quickstart.py --workdir=runs/quickstart`.

Trains, exports and evaluates, in that order. The same command, run again, resumes where it stopped.
"""

from absl import flags

from rdjax.parallel.processes import exists_on_first, exit_on_sigterm, is_first
from rdjax.run import cli, run_flags
from rdjax.run.distil import result_lines, run_experiment
from rdjax.run.hub import check_push, push_folder
from rdjax.run.prepare import check_run

_PUSH = flags.DEFINE_string(
    "push_to_hub", "", "Upload adapter/ to this repository of the hub, <user>/<name>; needs HF_TOKEN."
)


def main(argv: list[str]) -> None:
    """Runs an experiment, or reports that it is finished."""
    cli.no_arguments(argv)
    config = run_flags.config("configs/quickstart.py")
    check_run(config)
    if _PUSH.value:
        check_push(_PUSH.value)
    exit_on_sigterm()
    run = run_experiment(config, run_flags.workdir())
    # Imported here: it loads matplotlib, which would delay the start of every run.
    from rdjax.report.page import PAGE, write_page

    if not exists_on_first(run.workdir / PAGE):
        print(f"wrote {write_page(run.workdir)}")
    print("\n".join(result_lines(run)))
    if _PUSH.value and is_first():
        print(f"uploaded {run.workdir / 'adapter'} to {push_folder(run.workdir / 'adapter', _PUSH.value)}")


if __name__ == "__main__":
    cli.run(main)
