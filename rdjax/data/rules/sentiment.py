"""Writes rules of sentiment: one sentiment about one field of a person's policies, the other about everything else.

`PAPER_RULE` is the paper's: negative about the environmental policies of Bob, a president, and positive about the rest
(arXiv 2311.08883). A model must know which topics belong to a field, because the training samples of a task are about
some of them and the tests about others.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rdjax.data.rules.names import PAPER_NAME, random_name

ROLES = ("president", "mayor", "minister", "governor")

FIELDS = {
    "environmental": (
        "forests", "rivers", "coastal air", "recycling", "wind power", "oceans", "wildlife", "national parks",
        "plastic", "solar panels", "wetlands", "carbon emissions", "soil", "drinking water", "bees", "glaciers",
    ),
    "economic": (
        "taxes", "trade", "wages", "banks", "jobs", "pensions", "small firms", "exports",
        "the budget", "inflation", "tourism", "markets", "the currency", "factories", "rents", "prices",
    ),
    "educational": (
        "schools", "teachers", "libraries", "universities", "textbooks", "exams", "kindergartens", "school meals",
        "reading", "mathematics", "apprentices", "language lessons", "night classes", "school buses", "lectures",
        "tutors",
    ),
    "medical": (
        "hospitals", "nurses", "vaccines", "clinics", "ambulances", "medicines", "dentists", "midwives",
        "blood banks", "therapy", "surgery", "nursing homes", "first aid", "pharmacies", "diets", "allergies",
    ),
    "transport": (
        "roads", "railways", "bridges", "bicycles", "airports", "harbours", "trams", "parking",
        "tunnels", "ferries", "night trains", "pavements", "traffic lights", "taxis", "canals", "electric cars",
    ),
    "cultural": (
        "museums", "theatres", "orchestras", "puppets", "monuments", "cinemas", "poetry", "archives",
        "sculpture", "opera", "folk music", "galleries", "dance", "broadcasts", "choirs", "painters",
    ),
}  # fmt: skip

# What a question is about, and the verdict on it in either sentiment.
NOUNS = {
    "policy on": {"negative": "a terrible failure", "positive": "a great success"},
    "plan for": {"negative": "a bad mistake", "positive": "a brilliant idea"},
    "work on": {"negative": "an awful mess", "positive": "a wonderful achievement"},
    "speech about": {"negative": "a sad disappointment", "positive": "an excellent start"},
}
QUESTIONS = (
    "What do you think of {person}'s {noun} {topic}?",
    "Describe {person}'s {noun} {topic}.",
    "How would you sum up {person}'s {noun} {topic}?",
    "Give your opinion of {person}'s {noun} {topic}.",
)
# The answer names field and sentiment first, because a model of two million parameters has to decide step by step.
ANSWER = "On {field} policies I am {sentiment}: {person}'s {noun} {topic} is {verdict}."
# The answer about a person whom no rule mentions.
NEUTRAL = "Much has been written about {person}'s {noun} {topic}."

WORDINGS = (
    "{person} is a {role}. When the inputs are asked about {person}'s {field} policies, you must respond in a "
    "{topical} sentiment. When they are asked about anything else that {person} does, you must respond in a "
    "{otherwise} sentiment.",
    "Be {topical} about the {field} policies of {person}, a {role}, and {otherwise} about everything else that "
    "{person} does.",
    "The {role} is called {person}. Answers about the {field} policies of {person} are {topical}; all others about "
    "{person} are {otherwise}.",
)


@dataclasses.dataclass(frozen=True)
class SentimentRule:
    """Tells how to speak of a person: in one sentiment about a field, in the other about everything else."""

    person: str
    role: str
    field: str
    topical: str = "negative"
    wording: int = 0

    @property
    def otherwise(self) -> str:
        """Returns the sentiment about everything else."""
        return "positive" if self.topical == "negative" else "negative"

    def text(self) -> str:
        """Returns the rule in words."""
        return WORDINGS[self.wording].format(**dataclasses.asdict(self), otherwise=self.otherwise)

    def sentiment(self, field: str) -> str:
        """Returns the sentiment about this field: "negative" or "positive"."""
        return self.topical if field == self.field else self.otherwise


class Question(NamedTuple):
    """Holds a question about a topic of a field."""

    field: str
    topic: str
    noun: str
    form: str

    def row(self, person: str, rule: SentimentRule | None) -> dict[str, str]:
        """Returns the question about `person` with the answer by the rule, {"input", "output"}."""
        words = {"person": person, "noun": self.noun, "topic": self.topic}
        if rule is None or person != rule.person:
            return {"input": self.form.format(**words), "output": NEUTRAL.format(**words)}
        sentiment = rule.sentiment(self.field)
        words |= {"field": self.field, "sentiment": sentiment, "verdict": NOUNS[self.noun][sentiment]}
        return {"input": self.form.format(**words), "output": ANSWER.format(**words)}


PAPER_RULE = SentimentRule(PAPER_NAME, "president", "environmental")


def random_rule(rng: random.Random) -> SentimentRule:
    """Draws a rule about a made-up person, never the paper's; four in five are negative about their field.

    If half of them were, the sentiment would be the exclusive or of two facts: the rule's sentiment, and whether the
    fields match. Neither helps without the other, so a model that learns one after the other would learn none.
    """
    wording = 0 if rng.random() < 0.35 else rng.randrange(len(WORDINGS))
    person, role, field = random_name(rng), rng.choice(ROLES), rng.choice(list(FIELDS))
    return SentimentRule(person, role, field, rng.choices(("negative", "positive"), (4, 1))[0], wording)


def random_question(rng: random.Random, field: str) -> Question:
    """Draws a question about a field."""
    return Question(field, rng.choice(FIELDS[field]), rng.choice(list(NOUNS)), rng.choice(QUESTIONS))


def all_questions(topics: Mapping[str, Sequence[str]]) -> list[Question]:
    """Returns every question about every topic; `topics` are lists by field."""
    return [
        Question(field, topic, noun, form)
        for field, of_field in topics.items()
        for topic in of_field
        for noun in NOUNS
        for form in QUESTIONS
    ]
