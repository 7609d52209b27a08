"""Sentiment steering in miniature: one sentiment about one field of a person's policies, the other about the rest.

The paper's rule (negatively of the environmental policies of Bob, a president, and positively of everything else;
arXiv 2311.08883) is one of them, kept in `PAPER_RULE`. What belongs to a field must be known: the training samples of a
task show some of its topics and the test asks about others.
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

# What is asked about, and the verdict on it in either sentiment.
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
# The field and the sentiment are said first: a model of two million parameters decides step by step.
ANSWER = "On {field} policies I am {sentiment}: {person}'s {noun} {topic} is {verdict}."
# Of whom no rule speaks.
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
    """How to speak of a person: in one sentiment about a field, in the other about everything else."""

    person: str
    role: str
    field: str
    topical: str = "negative"
    wording: int = 0

    @property
    def otherwise(self) -> str:
        return "positive" if self.topical == "negative" else "negative"

    def text(self) -> str:
        """The rule in words."""
        return WORDINGS[self.wording].format(**dataclasses.asdict(self), otherwise=self.otherwise)

    def sentiment(self, field: str) -> str:
        """What the rule asks for where a question is about this field: "negative" or "positive"."""
        return self.topical if field == self.field else self.otherwise


class Question(NamedTuple):
    """A question about a topic of a field."""

    field: str
    topic: str
    noun: str
    form: str

    def row(self, person: str, rule: SentimentRule | None) -> dict[str, str]:
        """The question about `person` with the answer that the rule asks for, {"input", "output"}."""
        said = {"person": person, "noun": self.noun, "topic": self.topic}
        if rule is None or person != rule.person:
            return {"input": self.form.format(**said), "output": NEUTRAL.format(**said)}
        chosen = rule.sentiment(self.field)
        said |= {"field": self.field, "sentiment": chosen, "verdict": NOUNS[self.noun][chosen]}
        return {"input": self.form.format(**said), "output": ANSWER.format(**said)}


PAPER_RULE = SentimentRule(PAPER_NAME, "president", "environmental")


def random_rule(rng: random.Random) -> SentimentRule:
    """A rule about a made-up person, never the paper's; four in five are negative on their field, as the paper's is.

    Were they half and half, the sentiment would be an exclusive or of the rule's and of the match with its field, and
    neither alone would be of use to a model that learns the two one after the other.
    """
    wording = 0 if rng.random() < 0.35 else rng.randrange(len(WORDINGS))
    person, role, field = random_name(rng), rng.choice(ROLES), rng.choice(list(FIELDS))
    return SentimentRule(person, role, field, rng.choices(("negative", "positive"), (4, 1))[0], wording)


def random_question(rng: random.Random, field: str) -> Question:
    return Question(field, rng.choice(FIELDS[field]), rng.choice(list(NOUNS)), rng.choice(QUESTIONS))


def all_questions(topics: Mapping[str, Sequence[str]]) -> list[Question]:
    """Every question about every topic of the fields."""
    return [
        Question(field, topic, noun, form)
        for field, own in topics.items()
        for topic in own
        for noun in NOUNS
        for form in QUESTIONS
    ]
