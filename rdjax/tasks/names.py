"""Made-up names, of people and of role plays."""

import random

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def random_name(rng: random.Random) -> str:
    """Three to six letters, "Tam" or "Rosilu"; never Bob, whom the paper's sentiment rule is about."""
    while True:
        shape = rng.choice(("cvc", "cvcv", "vcv", "cvcvc", "cvcvcv"))
        name = "".join(rng.choice(CONSONANTS if kind == "c" else VOWELS) for kind in shape).capitalize()
        if name != "Bob":
            return name
