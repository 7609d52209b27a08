"""Checks that docstrings begin as the house wants them: with a verb that says what the thing does."""

import ast
import pathlib

import pytest

import rdjax

ROOT = pathlib.Path(rdjax.__file__).parent
# Words that end like a verb of the third person and are none.
NO_VERBS = {
    "As",
    "Its",
    "This",
    "Ids",
    "Rows",
    "Tokens",
    "Pairs",
    "Always",
    "Less",
    "Besides",
    "Towards",
    "Names",
    "Others",
}
DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef)


def first_words(path: pathlib.Path):
    """Yields where each docstring stands, and its first word."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        text = ast.get_docstring(node) if isinstance(node, DEFINITIONS) else None
        if text and not text.startswith("Args:"):
            yield f"{path.name}:{getattr(node, 'name', 'module')}", text.split()[0].rstrip(",;:")


def is_verb(word: str) -> bool:
    """Tells whether a word can be a verb of the third person, as "Reads" is."""
    return word.isalpha() and word[0].isupper() and word.endswith("s") and word not in NO_VERBS


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb(path):
    assert [f"{where}: {word}" for where, word in first_words(path) if not is_verb(word)] == []


def test_what_is_no_verb_is_found():
    assert [word for word in ("Reads", "The", "How", "reads", "Rows", "Half-open", "Is") if is_verb(word)] == [
        "Reads",
        "Is",
    ]
