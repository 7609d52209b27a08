"""One self-contained page for a run or a sweep: `python -m rdjax.report --workdir=runs/quickstart`.

With `--figures=<folder>` the page's figures are written there as well, an SVG file each.
"""

import pathlib

import jinja2
from absl import flags

from rdjax import cli, experiment_flags
from rdjax.errors import UserError
from rdjax.figures import label, metric_of
from rdjax.files import write_text
from rdjax.run_page import run_page
from rdjax.sweep_page import sweep_page

_FIGURES = flags.DEFINE_string("figures", None, "Folder for the page's figures as SVG files; default: none.")

PAGE = "report.html"
TEMPLATE = pathlib.Path(__file__).parent / "assets" / "report.html.jinja"


def write_report(workdir: pathlib.Path, figures: pathlib.Path | None = None) -> pathlib.Path:
    """Writes `<workdir>/report.html` for the finished run or the sweep that lies there.

    Args:
      figures: a folder for the page's figures, `<name>.svg`; None writes none.

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
    write_text(path, template.render(**page))
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for name, svg in page["figures"].items():
            if svg:
                (figures / f"{name}.svg").write_text(svg, encoding="utf-8")
    return path


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    figures = pathlib.Path(_FIGURES.value) if _FIGURES.value else None
    print(f"wrote {write_report(experiment_flags.workdir(), figures)}")


if __name__ == "__main__":
    cli.run(main)
