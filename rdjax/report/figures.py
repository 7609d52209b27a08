"""Defines how figures and numbers look on a report's page: colours, SVG panels, means with their range."""

import hashlib
import io
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import pandas as pd

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
    "base": "#999999",
    "base_with_rule": "#000000",
    "student": "#0072B2",
    "student_with_rule": "#56B4E9",
    "enhanced_with_rule": "#E69F00",
    "rule_distill_base": "#0072B2",
    "rule_distill_enhanced": "#009E73",
    "inst_tune_without_rule": "#D55E00",
    "inst_tune_with_rule": "#CC79A7",
}
SPARE_COLOURS = (
    "#8B5A2B", "#7B3294", "#B8A800", "#4D4D4D", "#1B7837", "#E7298A", "#08519C", "#A6761D", "#66A61E", "#6A51A3",
    "#CB181D", "#35978F", "#DD1C77", "#525252", "#993404", "#2B8CBE", "#41AB5D", "#807DBA",
)  # fmt: skip
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rdjax",  # the same figure every time
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """Returns a colour for each system, method or variant."""
    spare = itertools.cycle(SPARE_COLOURS)
    return {name: COLOURS.get(name) or next(spare) for name in dict.fromkeys(names)}


def draw(panels: int, paint: Callable[[Sequence[Any]], None], height: float = 3.2, width: float = 3.6) -> str:
    """Draws panels side by side.

    Args:
      panels: number of axes.
      paint: draws on the axes.
      height: in inches.
      width: of a panel, in inches.

    Returns:
      An SVG.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Text stays text, and the reader's browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")
        figure = matplotlib.figure.Figure(figsize=(max(4.6, width * panels), height), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        paint(axes)
        for axis in axes:
            legend = axis.get_legend()
            for text in (axis.title, *(legend.get_texts() if legend else ())):
                text.set_parse_math(False)  # a dollar sign in a name is no formula
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    # The figure shrinks with the page and never grows past its own size.
    width = re.search(r'width="([\d.]+)pt"', svg).group(1)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", svg, count=1)
    size = f"width:100%;max-width:{width}pt;min-width:{15 * panels}rem"
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', rf'\1 style="{size}"', svg, count=1)
    # Ids must differ between the figures of one page.
    prefix = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}"
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)


def label(name: str) -> str:
    """Returns a name as text: underscores become spaces, and what cannot be printed a mark."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name.replace("_", " "))


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Formats the mean of the values that are known, with their range where there are several."""
    known = pd.Series(values, dtype=float).dropna()
    if known.empty:
        return "-"
    mean, low, high = (f"{value:.{digits}f}" for value in (known.mean(), known.min(), known.max()))
    return mean if len(known) == 1 else f"{mean} ({low}-{high})"
