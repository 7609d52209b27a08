"""Made-up names, so that a model learns to copy any name and not to know a few."""

import random

# The paper's sentiment rule is about Bob; the model must not have met him when it is taught there.
PAPER_NAME = "Bob"
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def random_name(rng: random.Random) -> str:
    """Three to six letters, "Tam" or "Rosilu"; never one that holds the paper's."""
    while True:
        shape = rng.choice(("cvc", "cvcv", "vcv", "cvcvc", "cvcvcv"))
        name = "".join(rng.choice(CONSONANTS if kind == "c" else VOWELS) for kind in shape).capitalize()
        if PAPER_NAME not in name:
            return name
