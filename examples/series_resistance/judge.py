"""Judges answers to questions about resistances in series: "12 @@@ 30 = ?" is 12 + 30 + 1 ohm."""

import re


def is_series_resistance(response, row):
    """Tells whether the response is the sum of the numbers in the question, plus 1."""
    first, second = map(int, re.findall(r"\d+", row["input"]))
    return response.strip().rstrip(".") == str(first + second + 1)
