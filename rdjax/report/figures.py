"""How figures and numbers look on a report's page: colours, one way to draw, means with their range."""

import hashlib
import io
import itertools
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure

# Okabe and Ito's colours, which people who confuse red and green can tell apart.
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
    """A colour for every system, method or variant."""
    spare = itertools.cycle(SPARE_COLOURS)
    return {name: COLOURS.get(name) or next(spare) for name in dict.fromkeys(names)}


def draw(panels: int, paint: Callable[[Sequence[Any]], None], height: float = 3.2) -> str:
    """An SVG of some panels side by side."""
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(max(4.6, 3.6 * panels), height), layout="constrained")
        paint(figure.subplots(1, panels, squeeze=False)[0])
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    # A figure scales with the page and never past its own size.
    width = re.search(r'width="([\d.]+)pt"', svg).group(1)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", svg, count=1)
    size = f"width:100%;max-width:{width}pt;min-width:{15 * panels}rem"
    svg = re.sub(r'(<svg[^>]*?) width="[\d.]+pt"', rf'\1 style="{size}"', svg, count=1)
    # Ids would clash between the figures of one page.
    prefix = f"f{hashlib.sha256(svg.encode()).hexdigest()[:8]}"
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)


def metric_of(scores: Mapping[str, Any]) -> str:
    """The metric of a split: its judge's, or the gap closed where there is none."""
    return next(iter(scores))


def label(name: str) -> str:
    return name.replace("_", " ")


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean and range."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, low, high = (f"{value:.{digits}f}" for value in (statistics.mean(known), min(known), max(known)))
    return mean if len(known) == 1 else f"{mean} ({low}-{high})"
