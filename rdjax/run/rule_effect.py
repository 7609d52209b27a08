"""Measures what a rule changes in the answers to inputs, and divides the inputs by it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rdjax.data.rows import Row
from rdjax.evaluation.answers import answer, answered_pairs, prompts_of
from rdjax.evaluation.divergence import row_divergences
from rdjax.run.experiment import Experiment
from rdjax.storage.metrics import progress_bar

# A rule is about an input if it changes the base's answer to it by more than this share of what it changes where it
# changes most: the mean over the upper quarter of the inputs that were written with it.
OFF_RULE = 0.2
# A rule is about everything if it is about this share of the inputs that were written without it.
ABOUT_EVERYTHING = 0.5


class MeasuredInputs(NamedTuple):
    """Holds inputs, and for each how much the rule changes the base's answer, nats per token."""

    texts: list[str]
    effects: list[float]


def rule_effects(experiment: Experiment, rows: Sequence[Row]) -> list[float]:
    """Measures for each row KL(base with rule || base) on the answer with the rule, nats per token."""
    if not rows:
        return []
    model, options, with_rule = experiment.model, experiment.options, experiment.base_with_rule
    prompts = prompts_of(model, rows, options)
    with progress_bar(len(rows), 0, "answers with the rule", "input") as bar:
        pairs = answered_pairs(prompts, answer(model, with_rule, prompts, options, bar.update))
    with progress_bar(len(rows), 0, "what the rule changes", "input") as bar:
        return row_divergences(model, with_rule, experiment.base, pairs, options, bar.update)


def divide_by_effect(
    with_rule: MeasuredInputs, without: MeasuredInputs, are_own: bool = False
) -> tuple[list[str], list[str], str]:
    """Divides inputs by what the rule changes in the answers to them.

    Args:
      with_rule, without: inputs written with the rule in the prompt and without it.
      are_own: the first are the user's, who says that the rule is about them: none of them is retained.

    Returns:
      Inputs that the rule is about, in a mixed order; others, which are retained; and a note for the log.
    """
    limit = effect_limit(with_rule.effects)
    about = sum(effect > limit for effect in without.effects)
    if without.texts and about >= ABOUT_EVERYTHING * len(without.texts):
        note = (
            f"the rule changes the answers to {about} of {len(without.texts)} inputs that were written without it: it "
            f"is about everything{'' if are_own else ', and they join the others'}; nothing is retained "
            "(retain.jsonl can say what it is not about)"
        )
        return alternate(with_rule.texts, without.texts), [], note
    on_rule = [text for text, effect in zip(*with_rule, strict=True) if effect > limit]
    misses = [text for text, effect in zip(*with_rule, strict=True) if effect <= limit]
    if not without.texts:
        left_out = f"{len(misses)} of {len(with_rule.texts)} inputs written with it"
        note = f"the rule hardly changes the answers to {left_out}; these are left out" if misses else ""
        return (with_rule.texts, [], "") if are_own else (on_rule, [], note)
    retained = [text for text, effect in zip(*without, strict=True) if effect <= limit]
    note = f"the rule hardly changes the answers to {len(retained)} of {len(without.texts)} inputs written without it"
    if are_own:
        return with_rule.texts, retained, f"{note}; their answers are kept unchanged"
    kept = misses[: len(retained)]
    note += f", and to {len(misses)} of {len(with_rule.texts)} written with it; {len(retained) + len(kept)} of these "
    return on_rule, alternate(retained, kept), f"{note}are kept unchanged, {len(misses) - len(kept)} left out"


def effect_limit(effects: Sequence[float]) -> float:
    """Returns the effect above which a rule is about an input."""
    upper = sorted(effects, reverse=True)[: max(len(effects) // 4, 1)]
    return OFF_RULE * float(np.mean(upper)) if upper else 0.0


def alternate(texts: Sequence[str], others: Sequence[str]) -> list[str]:
    """Mixes two lists evenly, so that every part of the result has texts of both."""
    places = [(number + 0.5) / len(part) for part in (texts, others) for number in range(len(part))]
    return [text for _, text in sorted(zip(places, [*texts, *others], strict=True), key=lambda entry: entry[0])]
