"""Figures take any name that a user gives to his files and judges."""

import warnings
from xml.etree import ElementTree

import pytest

from rdjax.report.figures import draw, label

NAMES = ("a$b$c", "$x^$", r"$\frac{$", "cost $^$ high", r"$\undefined$", "$5", "a bell \x07", "规则 🎉", "<b>&")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_in_a_figure_as_it_is(name):
    def paint(axes):
        axes[0].plot([1, 2], [0.1, 10.0], label=label(name))
        axes[0].set_title(label(name))
        axes[0].set_yscale("log")
        axes[0].set_ylabel(r"$||u_t - u_s||^2$")
        axes[0].legend()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = draw(1, paint)
    texts = [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    ]
    assert texts.count(label(name)) == 2, "in the title and the legend"
    assert not any("$" in text for text in texts if text != label(name)), "formulas of our own are drawn"


def test_what_cannot_be_printed_is_marked():
    assert label("a_bell\x07") == "a bell\N{REPLACEMENT CHARACTER}"
