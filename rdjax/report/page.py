"""Writes the page of a run or a sweep: one self-contained HTML file."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

from rdjax.errors import UserError
from rdjax.report.figures import label
from rdjax.report.run_page import run_page
from rdjax.report.sweep_page import sweep_page
from rdjax.storage.files import write_text
from rdjax.storage.workdir import RESULTS, SWEEP

PAGE = "report.html"
TEMPLATES = pathlib.Path(__file__).parents[1] / "assets"


def render_page(template: str, page: Mapping[str, Any]) -> str:
    """Fills a template of assets/ with the content of a page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["label"] = label
    return environment.get_template(template).render(**page)


def write_page(workdir: pathlib.Path, figures: pathlib.Path | None = None) -> pathlib.Path:
    """Writes `<workdir>/report.html` for a finished run or a sweep.

    Args:
      figures: a folder for the page's figures, `<name>.svg`; None writes none.

    Returns:
      The path of the page.

    Raises:
      UserError: the folder contains neither.
    """
    if (workdir / SWEEP).exists():
        page = sweep_page(workdir)
    elif (workdir / RESULTS).exists():
        page = run_page(workdir)
    else:
        raise UserError(f"--workdir: {workdir} holds neither eval.json (a finished run) nor sweep.json (a sweep)")
    path = workdir / PAGE
    write_text(path, render_page("report.html.jinja", page))
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for name, svg in page["figures"].items():
            if svg:
                write_text(figures / f"{name}.svg", svg)
    return path
