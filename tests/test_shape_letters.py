"""Checks that every shape suffix of an array's name is made of letters that the legend explains."""

import ast
import pathlib
import re

import rdjax

ROOT = pathlib.Path(rdjax.__file__).parent
LEGEND = set(re.findall(r"(?:^| {2,})([A-Z]) (?=[a-zA-Z=])", rdjax.__doc__, flags=re.MULTILINE))
SUFFIX = re.compile(r"[a-z][a-z0-9_]*_([A-Za-z0-9]*[A-Z][A-Za-z0-9]*)")


def unknown_letters(source: str) -> set[str]:
    """Returns the capital letters of suffixes, and of sizes named by one letter, that the legend lacks."""
    letters = set()
    for node in ast.walk(ast.parse(source)):
        name = getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "attr", None)
        if isinstance(node, ast.Name | ast.arg | ast.Attribute) and isinstance(name, str):
            suffix = SUFFIX.fullmatch(name)
            letters |= set(suffix[1] if suffix else name if len(name) == 1 else "")
    return {letter for letter in letters if letter.isupper()} - LEGEND


def test_the_legend_is_read():
    assert set("BTSEUCPQLDFVNKGHRAMWYXIJZ") == LEGEND


def test_every_letter_is_in_the_legend():
    found = {str(path.relative_to(ROOT)): unknown_letters(path.read_text()) for path in ROOT.rglob("*.py")}
    assert {path: letters for path, letters in found.items() if letters} == {}


def test_a_letter_that_is_missing_is_found():
    assert unknown_letters("def f(x_BO):\n    return MAX_ROWS, a.b_TD") == {"O"}
    assert unknown_letters("def f(x_BT):\n    O = x_BT.shape[1]\n    return MAX_ROWS, a.b_TD") == {"O"}
