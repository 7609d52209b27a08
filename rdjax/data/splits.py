"""Tells the splits of a task apart: what is learnt, what is tested, and what is to stay unchanged."""

TRAIN_AND_VALID = ("train", "valid")  # what a student is trained on, and validated on meanwhile
RETAIN = "retain"  # inputs that the rule is not about
NEAR_MISSES = "near_misses"  # inputs like the rule's own that do not meet its condition
RETAINED = (RETAIN, NEAR_MISSES)  # the answers to these are to stay unchanged


def rule_of_split(split: str) -> str:
    """Returns the name of the rule that a split `<rule>/<name>` belongs to; "" where a task has one rule."""
    return split.rpartition("/")[0]


def kind_of_split(split: str) -> str:
    """Returns the name of a split without its rule's."""
    return split.rpartition("/")[2]


def is_test(split: str) -> bool:
    """Tells whether a split tests the rule."""
    return kind_of_split(split).startswith("test")


def is_retained(split: str) -> bool:
    """Tells whether the answers to a split's inputs are to stay unchanged."""
    return kind_of_split(split) in RETAINED


def is_evaluated(split: str) -> bool:
    """Tells whether a split is evaluated at the end of a run."""
    return is_test(split) or is_retained(split)


def train_part(split: str) -> str:
    """Returns the name of the part of a retained split that is trained on."""
    return f"{split}_train"
