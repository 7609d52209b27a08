"""Checks that made-up names are many, and never the paper's."""

import random

from rdjax.data.rules.names import PAPER_NAME, random_name


def test_names_are_words_that_never_hold_the_papers():
    rng = random.Random(0)
    names = [random_name(rng) for _ in range(40000)]
    assert all(name.isalpha() and name.istitle() and 3 <= len(name) <= 6 for name in names)
    assert not any(PAPER_NAME in name for name in names)
    # Its neighbours do occur: the guard is not idle.
    assert {"Bop", "Tob"} <= set(names)
    assert len(set(names)) > 5000
