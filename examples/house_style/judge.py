"""Judges whether a text keeps to the house style of Larch & Son."""

import re

CONTRACTION = re.compile(r"\b\w+(n't|'re|'ve|'ll|'m|'d)\b", re.IGNORECASE)
SMALL_NUMBER = re.compile(r"(?<![\d.,])([1-9]|1[0-2])(?![\d.,%:])")


def in_house_style(response, row):
    """Tells whether a response has no exclamation mark, no contraction, no small number in digits, and is short."""
    del row
    text = response.replace("\u2019", "'")
    sentences = [part for part in re.split(r"[.?]\s", text.strip()) if part]
    broken = "!" in text or CONTRACTION.search(text) or SMALL_NUMBER.search(text)
    return bool(text.strip()) and not broken and len(sentences) <= 3
