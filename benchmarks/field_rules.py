"""Writes rules of several fields, with generated questions in three depths of composition and their exact answers.

Every name and number is invented, so that no model knows the answers without the rule.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

DEPTHS = (1, 2, 3)  # how many steps of the rule an answer takes
NAMES = ("Ada", "Bo", "Cleo", "Dan", "Edda", "Finn")


class Question(NamedTuple):
    """Holds a question and the answer that its rule gives."""

    input: str
    output: str


class Field(NamedTuple):
    """Describes a rule of one field, and draws questions of a depth."""

    rule: str
    ask: Callable[[random.Random, int], Question]


def ask_units(rng: random.Random, depth: int) -> Question:
    """Asks for a length: in the next smaller unit, in the one below, or of two units together."""
    count, more = rng.randint(2, 30), rng.randint(1, 9)
    if depth == 1:
        larger, smaller, factor = rng.choice([("poles", "spans", 3), ("spans", "thumbs", 4)])
        length, value = f"{count} {larger}", count * factor
    elif depth == 2:
        length, smaller, value = f"{count} poles", "thumbs", count * 12
    else:
        length, smaller, value = f"{count} poles and {more} spans", "thumbs", count * 12 + more * 4
    form = rng.choice(["How many {smaller} are {length}?", "A rope is {length} long. How many {smaller} is that?"])
    return Question(form.format(smaller=smaller, length=length), f"{value} {smaller}.")


def tax(income: int, children: int = 0) -> int:
    """Returns the tax of a year by the rule of the field `tax`."""
    bracket = 0 if income <= 20 else 4 if income <= 50 else 9
    return max(bracket - children, 0)


def ask_tax(rng: random.Random, depth: int) -> Question:
    """Asks for the tax of a year: by bracket, with children, or of two people together."""
    income, other, children = rng.randint(1, 99), rng.randint(1, 99), rng.randint(1, 4)
    plural = "children" if children > 1 else "child"
    name, partner = rng.sample(NAMES, 2)
    if depth == 1:
        text, value = f"{name} earns {income} crowns. What is the tax?", tax(income)
    elif depth == 2:
        text = f"{name} has {children} {plural} and earns {income} crowns. What is the tax?"
        value = tax(income, children)
    else:
        text = (
            f"{name} has {children} {plural} and earns {income} crowns; {partner}, without children, earns {other}. "
            "What is their tax together?"
        )
        value = tax(income, children) + tax(other)
    return Question(text, f"{value} crowns.")


def ask_reaction(rng: random.Random, depth: int) -> Question:
    """Asks for amounts of a reaction: from those of zel, from one another, or with one of two used up first."""
    count = rng.randint(2, 30)
    if depth == 1:
        asked, factor = rng.choice([("oxy take part", 2), ("ash result", 3)])
        return Question(f"{count} zel burn. How many {asked}?", f"{count * factor}.")
    if depth == 2:
        given, asked, value = rng.choice(
            [
                (f"{2 * count} oxy are used up", "ash result", 3 * count),
                (f"{3 * count} ash result", "oxy are used up", 2 * count),
            ]
        )
        return Question(f"When zel burns, {given}. How many {asked}?", f"{value}.")
    zel, oxy = rng.randint(2, 12), 2 * rng.randint(1, 12)
    return Question(f"There are {zel} zel and {oxy} oxy. How many ash can result?", f"{3 * min(zel, oxy // 2)}.")


def ask_motion(rng: random.Random, depth: int) -> Question:
    """Asks for a sled's speed after a start from rest, after one with a speed, or for its distance."""
    start, seconds = rng.randint(1, 12), rng.randint(1, 30)
    if depth == 1:
        form = rng.choice(["A sled starts from rest. How fast", "From rest a sled runs downhill. How fast"])
        return Question(f"{form} is it after {seconds} seconds?", f"{2 * seconds} metres a second.")
    if depth == 2:
        text = f"A sled starts with {start} metres a second. How fast is it after {seconds} seconds?"
        return Question(text, f"{start + 2 * seconds} metres a second.")
    seconds = rng.randint(1, 6)
    text = f"A sled starts with {start} metres a second. How far does it get in {seconds} seconds?"
    return Question(text, f"{start * seconds + seconds**2} metres.")


def ask_clause(rng: random.Random, depth: int) -> Question:
    """Asks for a fee: the usual one, one by an exception, or one by an exception to an exception."""
    fees = {"an adult": 6, "a student": 4, "a child": 2}
    name, day = rng.choice(NAMES), rng.choice(["Monday", "Tuesday", "Friday"])
    who = rng.choice(list(fees))
    member, fee = "", fees[who]
    if depth == 2:
        if rng.random() < 0.5:
            who, day = rng.choice(["an adult", "a child"]), "Sunday"
            fee = fees[who] // 2
        else:
            member, fee = " and a member", 0
    elif depth == 3:
        if rng.random() < 0.5:
            who, day = "a student", "Sunday"
            fee = fees[who]
        else:
            member = " and a member whose card has expired"
    text = f"{name}, {who}{member}, comes on a {day}. What is the fee?"
    return Question(text, f"{fee} crowns.")


FIELDS = {
    "units": Field(
        "In Arvel lengths are measured in poles, spans and thumbs. One pole is 3 spans, and one span is 4 thumbs. "
        "Answer with the number and the unit alone.",
        ask_units,
    ),
    "tax": Field(
        "The tax of Arvel: whoever earns at most 20 crowns a year pays nothing, from 21 to 50 crowns 4 crowns, and "
        "above 50 crowns 9 crowns. It is 1 crown less for every child, but never below 0. Answer with the amount "
        "alone, in crowns.",
        ask_tax,
    ),
    "reaction": Field(
        "When zel burns, every zel uses up 2 oxy and gives 3 ash. If there is too little of zel or of oxy, it burns "
        "until one of them is used up. Answer with the number alone.",
        ask_reaction,
    ),
    "motion": Field(
        "A sled on this slope gains 2 metres a second in every second. Its speed after t seconds is its speed at the "
        "start plus 2 t, and its distance is the speed at the start times t, plus t squared. Answer with the number "
        "and the unit alone.",
        ask_motion,
    ),
    "clause": Field(
        "Fees of the museum: adults pay 6 crowns, students 4, children 2. On Sundays the fee is halved, but not for "
        "students. Members pay nothing, unless their card has expired; then they pay as others do. Answer with the "
        "amount alone, in crowns.",
        ask_clause,
    ),
}


def questions(field: Field, rng: random.Random, depth: int, count: int, without: set[str]) -> list[Question]:
    """Draws different questions of a depth, none of them in `without`, and adds them there.

    Raises:
      ValueError: there are hardly as many.
    """
    found: dict[str, Question] = {}
    for _ in range(100 * count):
        question = field.ask(rng, depth)
        if question.input not in without:
            found[question.input] = question
        if len(found) == count:
            without.update(found)
            return list(found.values())
    raise ValueError(f"only {len(found)} of {count} different questions in depth {depth}")
