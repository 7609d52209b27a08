"""One small distillation problem, shared by the tests of the step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.data.batches import Batch, as_update, collate
from rdjax.data.pairs import Pair, Prompts
from rdjax.data.positions import LossPositions
from rdjax.data.prefix import NO_PREFIX, SharedPrefix
from rdjax.data.shapes import SideShape, batch_shape
from rdjax.distillation.losses import TERMS
from rdjax.distillation.objective import TUNE_WITH_RULE, TUNE_WITHOUT_RULE, Objective, Term
from rdjax.distillation.step import GroupUpdate, StepSettings, loss_and_gradient
from rdjax.distillation.teacher import teacher_prefixes, teacher_signals
from rdjax.models.lora import Adapter, LoraSpec, init_adapter
from tests import tiny

SPEC = LoraSpec(
    rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
)
OURS = LossPositions("ours", "response", "token")
SHARED = LossPositions("ours", "shared", "token")
PUBLISHED = LossPositions("published", "response", "sample")
RULE = tuple(range(100, 121))  # tokens that all teacher prompts of `ruled_pairs` share
GREETING = tuple(range(130, 149))  # and that their student prompts share


def distillation(hidden_weight: float = 2.44, logit: str = "kl", temperature: float = 1.0) -> Objective:
    """Returns the objective of rule distillation."""
    terms = Term("logit_loss", 1.0, TERMS[logit]), Term("hidden_loss", hidden_weight, TERMS["hidden"])
    return Objective("student", terms, temperature)


DISTILL = distillation()
OBJECTIVES = {"distill": DISTILL, "tune_with_rule": TUNE_WITH_RULE, "tune_without_rule": TUNE_WITHOUT_RULE}
KINDS = (  # of objectives, and the positions that each can have
    ("distill", OURS),
    ("distill", SHARED),
    ("distill", PUBLISHED),
    ("tune_with_rule", OURS),
    ("tune_without_rule", OURS),
)


class Case(NamedTuple):
    graph: nnx.GraphDef
    base: dict[str, Any]
    config: Any


def make_case(fields: dict[str, Any] = tiny.LLAMA2, dtype=jnp.float32) -> Case:
    decoder = tiny.random_decoder(fields, dtype=dtype)
    graph, state = nnx.split(decoder)
    return Case(graph, nnx.to_pure_dict(state), decoder.config)


def random_pairs(count: int = 4, seed: int = 0) -> list[Pair]:
    """Pairs of several lengths: a shared tail of 3 tokens behind a rule of 5 to 8."""
    random = np.random.RandomState(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(random.randint(0, 256, length).tolist())

    pairs = []
    for number in range(count):
        head, rule, tail = ids(2), ids(5 + number), ids(3)
        prompts = Prompts("", "", head + rule + tail, head + tail, 3, f"row {number}")
        pairs.append(Pair(prompts, ids(1 + number % 3)))
    return pairs


def ruled_pairs() -> list[Pair]:
    """`random_pairs` whose teacher prompts begin with `RULE`, and whose student prompts with `GREETING`."""
    made = []
    for pair in random_pairs():
        teacher, student = RULE + pair.prompts.teacher_ids, GREETING + pair.prompts.student_ids
        prompts = dataclasses.replace(pair.prompts, teacher_ids=teacher, student_ids=student)
        made.append(dataclasses.replace(pair, prompts=prompts))
    return made


def random_adapter(config, seed: int = 1, spec: LoraSpec = SPEC) -> Adapter:
    """An adapter whose b is not zero: it changes the model."""
    adapter = init_adapter(config, spec, seed)
    random = np.random.RandomState(seed)
    return {
        name: {"a": ab["a"], "b": jnp.asarray(0.1 * random.standard_normal(ab["b"].shape), jnp.float32)}
        for name, ab in adapter.items()
    }


def make_update(
    pairs: list[Pair],
    positions: LossPositions,
    rows: int = 1,
    wider: int = 0,
    accumulation: int = 1,
    prefix: SharedPrefix = NO_PREFIX,
    weight: float = 1.0,
) -> Batch:
    """Makes one update of `rows` rows a micro-batch out of pairs; `wider` adds padding to every axis."""
    rows = rows * accumulation
    shape = batch_shape([pairs], rows, positions, prefix)
    teacher, student = (
        SideShape(side.tokens + wider, side.longest + wider, side.prefix) for side in (shape.teacher, shape.student)
    )
    shape = type(shape)(teacher, student, *(size + wider for size in shape[2:]))
    return as_update(collate(pairs, rows, shape, positions, eos=257), accumulation, weight)


def settings_of(case: Case, objective: Objective = DISTILL, **changes) -> StepSettings:
    return StepSettings(**{"graph": case.graph, "objectives": (objective, objective), "scale": SPEC.scale, **changes})


def add_members(tree):
    """Adds the axis M of one member."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def take_member(tree, number: int = 0):
    return jax.tree.map(lambda leaf: leaf[number], tree)


def make_group_update(case: Case, batch: Batch, objective=DISTILL, teacher=None, prefix=NO_PREFIX) -> GroupUpdate:
    """Adds what the step reads besides the batch: the teacher's signals and the prefix of the trained side.

    Args:
      teacher: the teacher's adapter, or None.
      prefix: what the batch leaves out.
    """
    tokens = {side: jnp.array(getattr(prefix, side), jnp.int32) for side in ("teacher", "student")}
    signals = None
    if objective.has_teacher:
        teacher_M, prefix_M = add_members(teacher), None
        if prefix.teacher:
            prefix_M = teacher_prefixes(case.graph, case.base, teacher_M, tokens["teacher"][None], SPEC.scale)
        signals_M = teacher_signals(case.graph, case.base, teacher_M, add_members(batch), prefix_M, SPEC.scale)
        signals = take_member(signals_M)
    return GroupUpdate(batch, signals, tokens[objective.trained] if getattr(prefix, objective.trained) else None)


def compute_gradient(case: Case, adapter, update, settings: StepSettings, dropout_key=None):
    """Computes ((loss, terms), gradient) of an update in the way of the step."""
    compute = jax.jit(loss_and_gradient, static_argnums=4)
    return compute(adapter, case.base, update, dropout_key, settings)


def loss_and_grad(
    case: Case,
    adapter,
    batch,
    objective=DISTILL,
    teacher=None,
    prefix=NO_PREFIX,
    dropout_key=None,
    **changes,
):
    """Computes ((loss, terms), gradient) of one group's batch. `changes`: of the step's settings."""
    group = make_group_update(case, batch, objective, teacher, prefix)
    return compute_gradient(case, adapter, (group,), settings_of(case, objective, **changes), dropout_key)


def assert_close(ours, theirs, relative: float) -> None:
    """Per tensor: the largest difference against the largest entry."""
    paths = jax.tree_util.tree_leaves_with_path(ours)
    for (path, left), right in zip(paths, jax.tree.leaves(theirs), strict=True):
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
        scale = max(np.abs(right).max(), 1e-12)
        assert np.abs(left - right).max() <= relative * scale, (
            f"{jax.tree_util.keystr(path)}: {np.abs(left - right).max() / scale}"
        )
