"""Makes up names, so that a model learns to copy any name instead of knowing a few."""

import random

# The paper's sentiment rule is about Bob. The embedded models must not know his name before they are distilled.
PAPER_NAME = "Bob"
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def random_name(rng: random.Random) -> str:
    """Draws a name of three to six letters, such as "Tam" or "Rosilu", that does not contain the paper's name."""
    while True:
        shape = rng.choice(("cvc", "cvcv", "vcv", "cvcvc", "cvcvcv"))
        name = "".join(rng.choice(CONSONANTS if kind == "c" else VOWELS) for kind in shape).capitalize()
        if PAPER_NAME not in name:
            return name
