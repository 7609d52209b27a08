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
from rdjax.data.prefix import Prefixes
from rdjax.data.shapes import batch_shape
from rdjax.distill.step import Objective, StepOptions, loss_and_gradient, teacher_signals
from rdjax.distill.teacher import read_prefix
from rdjax.models.lora import Adapter, LoraSpec, init_adapter, scaled_adapter
from tests import tiny

SPEC = LoraSpec(
    rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
)
OPTIONS = StepOptions(scale=SPEC.scale, dropout=0.0, remat="none")
OURS = LossPositions("ours", "response", "token")
SHARED = LossPositions("ours", "shared", "token")
PUBLISHED = LossPositions("published", "response", "sample")
RULE = tuple(range(100, 121))  # tokens that all teacher prompts of `ruled_pairs` share
GREETING = tuple(range(130, 149))  # and that their student prompts share
NO_PREFIX = Prefixes()
DISTILL = Objective("distill", "kl", 1.0, 2.44)
KINDS = (  # of loss, and the slots that each can have
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
    slots: LossPositions,
    rows: int = 1,
    wider: int = 0,
    accumulation: int = 1,
    prefixes: Prefixes = NO_PREFIX,
) -> Batch:
    """Pairs as one update of `rows` rows a micro-batch; `wider` adds padding to every axis."""
    rows = rows * accumulation
    shape = jax.tree.map(lambda size: size + wider, batch_shape([pairs], rows, slots, prefixes))
    shape = shape._replace(
        teacher=shape.teacher._replace(prefix=prefixes.teacher), student=shape.student._replace(prefix=prefixes.student)
    )
    return as_update(collate(pairs, rows, shape, slots, eos=257), accumulation)


def loss_and_grad(
    case: Case,
    adapter,
    batch,
    objective=DISTILL,
    teacher=None,
    options=OPTIONS,
    prefix_C=None,
    teacher_prefix_C=None,
    dropout_key=None,
):
    """((loss, parts), gradient) by the way that the step takes."""
    signals = None
    if objective.kind == "distill":
        teacher_M, batch_M = jax.tree.map(lambda leaf: leaf[None], (teacher, batch))
        before_M = None
        if teacher_prefix_C is not None:
            scaled = scaled_adapter(teacher, options.scale)
            before = jax.jit(read_prefix, static_argnums=0)(case.graph, case.base, scaled, teacher_prefix_C)
            before_M = jax.tree.map(lambda leaf: leaf[None], before)
        shown_M = teacher_signals(case.graph, case.base, teacher_M, batch_M, before_M, options.scale)
        signals = jax.tree.map(lambda leaf: leaf[0], shown_M)
    compute = jax.jit(loss_and_gradient, static_argnums=(0, 6, 7))
    return compute(case.graph, case.base, adapter, batch, signals, prefix_C, objective, options, dropout_key)


def assert_close(ours, theirs, relative: float) -> None:
    """Per tensor: the largest difference against the largest entry."""
    paths = jax.tree_util.tree_leaves_with_path(ours)
    for (path, left), right in zip(paths, jax.tree.leaves(theirs), strict=True):
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
        scale = max(np.abs(right).max(), 1e-12)
        assert np.abs(left - right).max() <= relative * scale, (
            f"{jax.tree_util.keystr(path)}: {np.abs(left - right).max() / scale}"
        )
