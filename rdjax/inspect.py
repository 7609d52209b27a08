"""Shows a run before any training: `python -m rdjax.inspect --config=configs/rule.py --workdir=runs/mine ...`.

On the screen and in `<workdir>/inspect.html`: both prompts with the response marked, token counts, duplicates, what the
base does already with the rule and without, and the memory and time to expect. It takes the flags of rdjax.train;
training in the same workdir goes on from what it has written.
"""

from rdjax.report.inspect_page import write_inspection
from rdjax.run import cli, run_flags
from rdjax.run.inspection import inspect_run, inspection_lines
from rdjax.run.prepare import check_run, prepare
from rdjax.run.start import show_sample
from rdjax.storage.files import write_json


def main(argv: list[str]) -> None:
    """Prints what is found, and writes inspect.json and the page."""
    cli.no_arguments(argv)
    config = run_flags.config("configs/rule.py")
    check_run(config)
    run = prepare(config, run_flags.workdir())
    try:
        show_sample(run.train[0], run.model)
        found = inspect_run(run)
        print("\n".join(inspection_lines(found)))
        write_json(run.workdir / "inspect.json", found)
        print(f"wrote {write_inspection(run.workdir, found)}")
    finally:
        run.log.close()


if __name__ == "__main__":
    cli.run(main)
