"""Finds the tokens that all prompts begin with, which are read once."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from rdjax.data.pairs import Pair
from rdjax.data.positions import LossPositions, aligned_positions

# A shared prefix of fewer tokens is read in every row: reading it once would save little.
PREFIX_PAYS = 16


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, in steps of 8; 0 where reading them once would not pay.

    Every prompt keeps at least one token of its own.
    """
    ids = [tuple(prompt) for prompt in prompts]
    # What the first and the last in order share, all share.
    both = zip(min(ids), max(ids), strict=False)
    common = len([*itertools.takewhile(lambda pair: pair[0] == pair[1], both)])
    length = min(common, *(len(prompt) - 1 for prompt in prompts)) // 8 * 8
    return length if length >= PREFIX_PAYS else 0


def teacher_prompts(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    return [pair.prompts.teacher_ids for pair in pairs]


def student_prompts(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    return [pair.prompts.student_ids for pair in pairs]


class Prefixes(NamedTuple):
    """How many leading tokens of the teacher's and of the student's prompts a batch leaves out, for all share them."""

    teacher: int = 0
    student: int = 0


def pair_prefixes(pairs: Sequence[Pair], slots: LossPositions) -> Prefixes:
    """`shared_prefix` of both prompts, less what the losses read."""

    def one(prompts: Sequence[tuple[int, ...]]) -> int:
        ends = [aligned_positions(pair, len(prompt), slots)[0] for pair, prompt in zip(pairs, prompts, strict=True)]
        return shared_prefix([prompt[: end + 1] for prompt, end in zip(prompts, ends, strict=True)])

    return Prefixes(one(teacher_prompts(pairs)), one(student_prompts(pairs)))
