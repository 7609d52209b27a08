"""One small distillation problem, shared by the tests of the step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.data.batches import Batch, Slots, as_update, batch_shape, collate
from rdjax.data.pairs import Pair, Prompts
from rdjax.distill.step import Objective, StepOptions, loss_and_gradient, teacher_signals
from rdjax.models.lora import Adapter, LoraSpec, init_adapter
from tests import tiny

SPEC = LoraSpec(
    rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
)
OPTIONS = StepOptions(scale=SPEC.scale, dropout=0.0, remat=False)
OURS = Slots("ours", "response", "token")
SHARED = Slots("ours", "shared", "token")
PUBLISHED = Slots("published", "response", "sample")
RULE = tuple(range(100, 121))  # tokens that all teacher prompts of `ruled_pairs` share
DISTILL = Objective("distill", "kl", 1.0, 2.44)


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
    """`random_pairs` whose teacher prompts begin with `RULE`."""
    made = []
    for pair in random_pairs():
        prompts = dataclasses.replace(pair.prompts, teacher_ids=RULE + pair.prompts.teacher_ids)
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
    pairs: list[Pair], slots: Slots, rows: int | None = None, wider: int = 0, accumulation: int = 1
) -> Batch:
    """Pairs as one update; `rows` and `wider` add padding rows and tokens."""
    shape = batch_shape(pairs, slots)
    shape = shape._replace(teacher=shape.teacher + wider, student=shape.student + wider, predict=shape.predict + wider)
    shape = shape._replace(aligned=shape.aligned + wider)
    return as_update(collate(pairs, rows or len(pairs), shape, slots, eos=257), accumulation)


def loss_and_grad(case: Case, adapter, batch, objective=DISTILL, teacher=None, options=OPTIONS):
    """((loss, parts), gradient) by the way that the step takes."""
    signals = None
    if objective.kind == "distill":
        one = jax.tree.map(lambda leaf: leaf[None], (teacher, batch))
        signals = jax.tree.map(lambda leaf: leaf[0], teacher_signals(case.graph, case.base, *one, options.scale))
    compute = jax.jit(loss_and_gradient, static_argnums=(0, 5, 6))
    return compute(case.graph, case.base, adapter, batch, signals, objective, options, None)


def assert_close(ours, theirs, relative: float) -> None:
    """Per tensor: the largest difference against the largest entry."""
    paths = jax.tree_util.tree_leaves_with_path(ours)
    for (path, left), right in zip(paths, jax.tree.leaves(theirs), strict=True):
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
        scale = max(np.abs(right).max(), 1e-12)
        assert np.abs(left - right).max() <= relative * scale, (
            f"{jax.tree_util.keystr(path)}: {np.abs(left - right).max() / scale}"
        )
