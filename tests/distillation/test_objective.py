"""Checks how a config's loss becomes a list of terms, and that a step adds them up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rdjax.distillation.losses import TERMS
from rdjax.distillation.objective import Objective, Term, distillation_objective, extra_terms, retain_objective
from rdjax.errors import UserError
from tests.distillation.case import SHARED, loss_and_grad, make_case, make_update, random_adapter, random_pairs

WIDTH = 32


def loss_config(**changes):
    loss = base.get_config().loss
    loss.update(changes)
    return loss


def described(objective: Objective) -> list[tuple[str, float, str]]:
    names = {function: name for name, function in TERMS.items()}
    return [(term.name, term.weight, names[term.function]) for term in objective.terms]


def test_the_fields_of_a_config_become_terms():
    assert described(distillation_objective(loss_config(), WIDTH)) == [
        ("logit_loss", 1.0, "kl"),
        ("hidden_loss", 2.44, "hidden"),
    ]
    objective = distillation_objective(loss_config(logit="entropy", hidden_beta=100.0, temperature=2.0), WIDTH)
    assert described(objective) == [("logit_loss", 1.0, "entropy"), ("hidden_loss", 100.0 / WIDTH, "hidden")]
    assert objective.temperature == 2.0 and objective.trained == "student" and objective.has_teacher
    assert described(distillation_objective(loss_config(hidden_weight=0.0), WIDTH)) == [("logit_loss", 1.0, "kl")]


def test_inputs_off_the_rule_have_a_weight_of_their_own():
    config = loss_config(hidden_weight=30.0, retain_hidden_weight=10.0)
    assert described(retain_objective(config, WIDTH)) == [("logit_loss", 1.0, "kl"), ("hidden_loss", 10.0, "hidden")]
    assert distillation_objective(config, WIDTH).terms[1].weight == 30.0
    config.retain_hidden_weight = None
    assert retain_objective(config, WIDTH) == distillation_objective(config, WIDTH)


def test_further_terms_are_named_with_their_weight():
    objective = distillation_objective(loss_config(logit="none", terms=("cross_entropy=0.5", "entropy=2")), WIDTH)
    assert described(objective) == [
        ("hidden_loss", 2.44, "hidden"),
        ("cross_entropy", 0.5, "cross_entropy"),
        ("entropy", 2.0, "entropy"),
    ]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (("kld=1",), r"config\.loss\.terms: 'kld=1' is not understood; accepted: <term>=<weight above 0>"),
        (("kl",), "'kl' is not understood"),
        (("kl=much",), "'kl=much' is not understood"),
        (("kl=-1",), "'kl=-1' is not understood"),
        (("kl=nan",), "'kl=nan' is not understood"),
        (("kl=inf",), "'kl=inf' is not understood"),
        (("kl=1", "kl=2"), "kl is named twice"),
    ],
)
def test_a_term_that_is_not_understood_is_refused(terms, message):
    with pytest.raises(UserError, match=message):
        extra_terms(loss_config(terms=terms))


@pytest.fixture(scope="module")
def case():
    return make_case()


@pytest.mark.parametrize("name", TERMS)
def test_a_loss_is_the_weighted_sum_of_its_terms(case, name):
    """Loss and gradient; a term alone is that term."""
    adapter, batch = random_adapter(case.config), make_update(random_pairs(), SHARED)

    def compute(*terms: Term):
        return loss_and_grad(case, adapter, batch, Objective("student", terms, temperature=2.0))

    (kl_loss, _), kl_gradient = compute(Term("first", 1.0, TERMS["kl"]))
    (loss, terms), gradient = compute(Term("second", 1.0, TERMS[name]))
    assert float(loss) == float(terms["second"]) > 0
    (both, terms), both_gradient = compute(Term("first", 1.0, TERMS["kl"]), Term("second", 0.25, TERMS[name]))
    assert set(terms) == {"first", "second"}
    np.testing.assert_allclose(both, kl_loss + 0.25 * loss, rtol=1e-5)
    for ours, one, other in zip(*map(jax.tree.leaves, (both_gradient, kl_gradient, gradient)), strict=True):
        np.testing.assert_allclose(ours, one + 0.25 * other, atol=1e-5 * float(jnp.abs(ours).max()) + 1e-9)
