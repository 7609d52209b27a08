"""Groups pairs that belong together in a stage: one rule's pairs, or pairs that the rule is not about."""

import dataclasses
from collections.abc import Sequence

from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions
from rdjax.data.prefix import NO_PREFIX, SharedPrefix, shared_prefix


@dataclasses.dataclass(frozen=True)
class PairGroup:
    """Holds pairs that share a beginning of their prompts and a weight in the loss.

    Attributes:
      pairs: each has its own teacher prompt: with this group's rule, or without any.
      prefix: what the prompts begin with; it is read once for the whole group.
      weight: the group's loss is a mean over its positions times this.
      batch_share: how many pairs an update has of the group, as a share of the run's batch size.
    """

    pairs: Sequence[Pair]
    prefix: SharedPrefix = NO_PREFIX
    weight: float = 1.0
    batch_share: float = 1.0

    def batch_size(self, of_run: int) -> int:
        """Returns how many pairs an update has of the group, at least one."""
        return max(1, round(of_run * self.batch_share))


def make_group(
    pairs: Sequence[Pair], positions: LossPositions, weight: float = 1.0, batch_share: float = 1.0
) -> PairGroup:
    """Makes a group of pairs and finds their shared prefix.

    Args:
      positions: which positions the losses read; the prefix ends before them.
    """
    return PairGroup(pairs, shared_prefix(pairs, positions), weight, batch_share)


def numbers_by_rule(pairs: Sequence[Pair]) -> list[list[int]]:
    """Returns the numbers of the pairs of each rule, or of each wording of one; the rules in order of appearance."""
    numbers: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        numbers.setdefault(pair.prompts.rule, []).append(number)
    return list(numbers.values())
