"""One self-contained page for a run or a sweep: `python -m rdjax.report --workdir=runs/quickstart`."""

import pathlib

import jinja2

from rdjax import cli, experiment_flags
from rdjax.errors import UserError
from rdjax.figures import label, metric_of
from rdjax.run_page import run_page
from rdjax.sweep_page import sweep_page

PAGE = "report.html"
TEMPLATE = pathlib.Path(__file__).parent / "assets" / "report.html.jinja"


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes `<workdir>/report.html` for the finished run or the sweep that lies there.

    Raises:
      UserError: neither lies there.
    """
    if (workdir / "sweep.json").exists():
        page = sweep_page(workdir)
    elif (workdir / "eval.json").exists():
        page = run_page(workdir)
    else:
        raise UserError(f"--workdir: {workdir} holds neither eval.json (a finished run) nor sweep.json (a sweep)")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"label": label, "metric_of": metric_of}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    path = workdir / PAGE
    beside = path.with_suffix(".part")
    beside.write_text(template.render(**page), encoding="utf-8")
    beside.replace(path)
    return path


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    print(f"wrote {write_report(experiment_flags.workdir())}")


if __name__ == "__main__":
    cli.run(main)
