"""Finds the tokens that many prompts begin with, so that they are read once instead of in every row."""

from collections.abc import Sequence
from typing import NamedTuple

from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions, aligned_positions

# A shorter prefix is read in every row: reading it once would save little.
SHORTEST_PREFIX = 16


class SharedPrefix(NamedTuple):
    """Holds the tokens that all teacher prompts of some pairs begin with, and those of all student prompts."""

    teacher: tuple[int, ...] = ()
    student: tuple[int, ...] = ()


NO_PREFIX = SharedPrefix()


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Counts the leading tokens that all prompts share, as a multiple of 8; 0 where reading them once would not pay.

    Every prompt keeps at least one token of its own.
    """
    ids = [tuple(prompt) for prompt in prompts]
    # What the first and the last prompt in sorted order share, all prompts share.
    first, last = min(ids), max(ids)
    shortest = min(map(len, ids)) - 1
    common = next((at for at in range(shortest) if first[at] != last[at]), shortest)
    length = common // 8 * 8
    return length if length >= SHORTEST_PREFIX else 0


def shared_prefix(pairs: Sequence[Pair], positions: LossPositions) -> SharedPrefix:
    """Finds the shared prefix of both prompts; it leaves out every token that the losses read."""

    def common(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        ends = [aligned_positions(pair, len(ids), positions)[0] for pair, ids in zip(pairs, prompts, strict=True)]
        length = shared_prefix_length([ids[: end + 1] for ids, end in zip(prompts, ends, strict=True)])
        return prompts[0][:length]

    return SharedPrefix(
        common([pair.prompts.teacher_ids for pair in pairs]),
        common([pair.prompts.student_ids for pair in pairs]),
    )


def equal_lengths(prefixes: Sequence[SharedPrefix]) -> list[SharedPrefix]:
    """Cuts prefixes to the length of the shortest one, on each side."""
    teacher, student = (min(map(len, side)) for side in zip(*prefixes, strict=True))
    return [SharedPrefix(prefix.teacher[:teacher], prefix.student[:student]) for prefix in prefixes]
