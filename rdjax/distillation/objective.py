"""Describes what a stage minimises: a weighted sum of terms."""

import dataclasses
from collections.abc import Callable

import jax
from ml_collections import config_dict

from rdjax.config import hidden_weight
from rdjax.distillation.losses import TERMS, LossInputs
from rdjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Term:
    """Describes one summand of an objective.

    Attributes:
      name: of its metric.
      weight: what the function's result is multiplied by.
      function: one of `losses.TERMS`.
    """

    name: str
    weight: float
    function: Callable[[LossInputs], jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Describes what a stage minimises, and which prompts the trained adapter reads.

    Attributes:
      trained: "student": prompts without the rule; "teacher": prompts with it.
      terms: their weighted sum is the loss.
      temperature, top_k: of the terms that compare distributions.
      hidden_layers: those whose inputs are compared; empty: all.
      has_teacher: whether the terms need a teacher's signals.
    """

    trained: str
    terms: tuple[Term, ...]
    temperature: float = 1.0
    top_k: int = 0
    hidden_layers: tuple[int, ...] = ()
    has_teacher: bool = True


CROSS_ENTROPY = Term("cross_entropy", 1.0, TERMS["cross_entropy"])
TUNE_WITHOUT_RULE = Objective("student", (CROSS_ENTROPY,), has_teacher=False)
TUNE_WITH_RULE = Objective("teacher", (CROSS_ENTROPY,), has_teacher=False)


def distillation_objective(loss: config_dict.ConfigDict, width: int) -> Objective:
    """Translates the config's `loss` section into terms.

    Args:
      width: of the model, D; the authors' `hidden_beta` depends on it.

    Raises:
      UserError: `loss.terms` names an unknown term or gives no number.
    """
    weight = hidden_weight(loss, width)
    terms = []
    if loss.logit != "none":
        terms.append(Term("logit_loss", 1.0, TERMS[loss.logit]))
    if weight:
        terms.append(Term("hidden_loss", weight, TERMS["hidden"]))
    return Objective("student", (*terms, *extra_terms(loss)), loss.temperature, loss.top_k, tuple(loss.hidden_layers))


def retain_objective(loss: config_dict.ConfigDict, width: int) -> Objective:
    """Translates the config's `loss` section for inputs that the rule is not about; as `distillation_objective`."""
    objective = distillation_objective(loss, width)
    if loss.retain_hidden_weight is None:
        return objective
    terms = (
        dataclasses.replace(term, weight=loss.retain_hidden_weight) if term.name == "hidden_loss" else term
        for term in objective.terms
    )
    return dataclasses.replace(objective, terms=tuple(terms))


def extra_terms(loss: config_dict.ConfigDict) -> tuple[Term, ...]:
    """Reads the terms "<name>=<weight>" of `loss.terms`.

    Raises:
      UserError: a term is unknown or named twice, or its weight is no number above 0.
    """
    terms = []
    for text in loss.terms:
        name, _, number = str(text).partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if name not in TERMS or not 0 < weight < float("inf"):
            accepted = f"<term>=<weight above 0>, with a term of {', '.join(TERMS)}"
            raise UserError(f"config.loss.terms: {text!r} is not understood; accepted: {accepted}")
        if name in (term.name for term in terms):
            raise UserError(f"config.loss.terms: {name} is named twice; accepted: each term once")
        terms.append(Term(name, weight, TERMS[name]))
    return tuple(terms)
