"""Suffixes of array names use the legend's letters, each of which has one meaning (rdjax/__init__.py)."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

import rdjax

ROOT = pathlib.Path(rdjax.__file__).parent
# Packages whose names are checked.
COVERED = ("parallel", "storage", "data", "models", "generation", "evaluation", "run", "report", "plan", "rulebook")

LEGEND = set(re.findall(r"(?:^| {2})([A-Z]) ", rdjax.__doc__, re.MULTILINE))
# A lower-case name, an underscore, and a suffix that begins with a capital or a digit and has a capital.
SUFFIX = re.compile(r"_?[a-z][a-z0-9]*(?:_[a-z][a-z0-9]*)*_(?=[0-9]*[A-Z])([0-9A-Z][0-9A-Za-z]*)")


def names(tree: ast.AST) -> Iterator[str]:
    """Yields every name that a module defines or uses, in code."""
    for node in ast.walk(tree):
        for field in ("id", "arg", "attr", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


def unknown_letters(name: str) -> set[str]:
    """Returns what a name's suffix has beside the legend's letters and 1."""
    match = SUFFIX.fullmatch(name)
    return set(match[1]) - LEGEND - {"1"} if match else set()


@pytest.mark.parametrize(
    "path",
    [path for package in COVERED for path in sorted((ROOT / package).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_suffixes_are_in_the_legend(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert {name: unknown_letters(name) for name in names(tree) if unknown_letters(name)} == {}


def test_letters_outside_the_legend_are_found():
    known = ("hidden_BTD", "mask_11TS", "_x_LKCH", "LayerKind", "PROMPT_BUCKET", "from_HF_name", "head", "rows_X")
    assert {name for name in known if unknown_letters(name)} == set()
    assert unknown_letters("words_XZ") == {"Z"}
    assert unknown_letters("scores_KbrC") == {"b", "r"}
    assert {"B", "T", "G", "Y"} <= LEGEND and len(LEGEND) == 22
