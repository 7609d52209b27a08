"""Writes the page of an inspection: one self-contained HTML file."""

import pathlib
from collections.abc import Mapping
from typing import Any

from rdjax.report.page import render_page
from rdjax.report.run_page import OUTPUT_ROWS, read_predictions, side_by_side
from rdjax.run.inspection import inspection_lines
from rdjax.storage.files import write_text

PAGE = "inspect.html"


def write_inspection(workdir: pathlib.Path, found: Mapping[str, Any]) -> pathlib.Path:
    """Writes `<workdir>/inspect.html` and returns its path.

    Args:
      found: what `run.inspection.inspect_run` returned.
    """
    predictions = read_predictions(workdir, found["results"]["splits"])
    page = {
        "title": f"Inspection of {workdir.name}",
        "rule": found["rule"],
        "lines": inspection_lines(found),
        "samples": found["samples"],
        "overlaps": found["overlaps"],
        "outputs": side_by_side(predictions, OUTPUT_ROWS),
    }
    path = workdir / PAGE
    write_text(path, render_page("inspect.html.jinja", page))
    return path
