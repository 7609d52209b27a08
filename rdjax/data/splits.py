"""Tells the splits of a task apart: what is learnt, what is tested, and what is to stay as it is."""

LEARNT = ("train", "valid")  # the splits that a student learns from
RETAIN = "retain"  # inputs that the rule is not about
NEAR_MISSES = "near_misses"  # inputs like the rule's own that do not meet its condition
HELD = (RETAIN, NEAR_MISSES)  # what the base says to these is to stay as it is


def rule_of_split(split: str) -> str:
    """Returns the name of the rule that a split `<rule>/<name>` belongs to; "" where a task has one rule."""
    return split.rpartition("/")[0]


def kind_of_split(split: str) -> str:
    """Returns the name of a split without its rule's."""
    return split.rpartition("/")[2]


def is_test(split: str) -> bool:
    """Tells whether a split tests the rule."""
    return kind_of_split(split).startswith("test")


def is_held(split: str) -> bool:
    """Tells whether the answers to a split's inputs are to stay as they are."""
    return kind_of_split(split) in HELD


def is_evaluated(split: str) -> bool:
    """Tells whether a split is evaluated at the end of a run."""
    return is_test(split) or is_held(split)


def train_part(split: str) -> str:
    """Returns the name of the part of a held split that is trained on."""
    return f"{split}_train"
