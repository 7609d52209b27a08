"""Makes distillation problems of any size: a random Llama and random pairs, without files or a tokenizer."""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import config_dict
from tabulate import tabulate

from configs import base
from rdjax.config import DEFAULT_HIDDEN_WEIGHT
from rdjax.data.groups import make_group
from rdjax.data.pairs import Pair, Prompts
from rdjax.data.positions import LossPositions
from rdjax.distillation.losses import TERMS
from rdjax.distillation.objective import Objective, Term
from rdjax.distillation.step import StepSettings
from rdjax.distillation.updates import GroupLoader, make_loader, sequential_batches, with_signals
from rdjax.models.config import DecoderConfig
from rdjax.models.layers import training_layout
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.models.sharding import param_shardings
from rdjax.models.weights import abstract_params
from rdjax.parallel.mesh import make_mesh, replicated

SHAPES = {
    # width, layers, heads, key-value heads, feed-forward, vocabulary
    "20m": (384, 8, 6, 6, 1024, 6000),
    "160m": (768, 12, 12, 12, 2048, 32000),
    "1b": (2048, 16, 32, 8, 8192, 128256),
    "7b": (4096, 32, 32, 32, 11008, 32000),
}

# The adapter and the weight of hidden states of all problems.
SPEC = LoraSpec(16, 16.0, 0.0, ("q_proj", "k_proj", "v_proj", "o_proj"))


@dataclasses.dataclass(frozen=True)
class Problem:
    """Holds what a distillation needs.

    Attributes:
      model: an object with the fields of `LanguageModel` that are used.
      pairs: k pairs whose teacher prompts share a rule.
      adapter: an adapter that changes the outputs.
      spec: rank, scale and projections of the adapter.
    """

    model: Any
    pairs: list[Pair]
    adapter: dict[str, dict[str, jax.Array]]
    spec: LoraSpec

    @property
    def parameters(self) -> int:
        """Counts all parameters except the embedding, which multiplies nothing unless it is also the head."""
        c = self.model.config
        total = sum(leaf.size for leaf in jax.tree.leaves(self.model.base))
        return total - (0 if c.tied_embeddings else self.model.base["embed_tokens"].size)


def decoder_config(shape: str, **changes: int) -> DecoderConfig:
    width, layers, heads, kv_heads, feed_forward, vocab = SHAPES[shape]
    config = DecoderConfig(
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width // heads,
        feed_forward=feed_forward,
        norm_epsilon=1e-5,
        max_positions=8192,
        tied_embeddings=False,
    )
    return dataclasses.replace(config, **changes)


def random_weights(config: DecoderConfig, dtype, mesh):
    """Returns the graph and random weights on the mesh: normal with deviation 0.02, norms at one."""
    graph, abstract = abstract_params(config, dtype, mesh=mesh)
    shardings = flatten_dict(param_shardings(mesh, abstract), sep=".")

    def one(number: int, path: str, leaf) -> jax.Array:
        def make(key):
            if leaf.ndim == 1 or path.endswith("norm.weight"):
                return jnp.ones(leaf.shape, dtype)
            return 0.02 * jax.random.normal(key, leaf.shape, dtype)

        return jax.jit(make, out_shardings=shardings[path])(jax.random.key(number))

    made = {
        path: one(number, path, leaf) for number, (path, leaf) in enumerate(flatten_dict(abstract, sep=".").items())
    }
    return graph, unflatten_dict(made, sep=".")


def random_pairs(vocab: int, k: int, rule: int, prompt: int, response: int, spread: float = 0.25) -> list[Pair]:
    """Returns pairs with these mean lengths of prompts and responses, varied by the share `spread`."""
    random = np.random.RandomState(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(random.randint(0, vocab, length).tolist())

    def about(length: int) -> int:
        return max(1, round(length * random.uniform(1 - spread, 1 + spread)))

    template, shared_rule = ids(prompt // 3), ids(rule)
    pairs = []
    for number in range(k):
        tail = ids(about(prompt - len(template)))
        prompts = Prompts("", "", template + shared_rule + tail, template + tail, len(tail), f"pair {number}")
        pairs.append(Pair(prompts, ids(about(response))))
    return pairs


def make_problem(
    shape: str, k: int = 64, rule: int = 60, prompt: int = 60, response: int = 40, **changes: int
) -> Problem:
    """Makes a problem in float32 on CPU, in bfloat16 on accelerators; `changes` are fields of the decoder's config."""
    config = decoder_config(shape, **changes)
    mesh = make_mesh(base.get_config().mesh)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    graph, weights = random_weights(config, dtype, mesh)
    weights = training_layout(weights, config.layers, mesh)
    model = types.SimpleNamespace(config=config, graph=graph, base=weights, mesh=mesh, eos_ids=(1,), name=shape)
    adapter = {name: {"a": ab["a"], "b": ab["b"] + 1e-3} for name, ab in init_adapter(config, SPEC, seed=0).items()}
    pairs = random_pairs(config.vocab, k, rule, prompt, response)
    return Problem(model, pairs, jax.device_put(adapter, replicated(mesh)), SPEC)


def train_config(**changes: Any) -> config_dict.ConfigDict:
    """Returns `config.train` of configs/base.py with changes."""
    train = base.get_config().train.copy_and_resolve_references()
    train.update(changes)
    return train


POSITIONS = LossPositions("ours", "response", "token")
OBJECTIVE = Objective(
    "student", (Term("logit_loss", 1.0, TERMS["kl"]), Term("hidden_loss", DEFAULT_HIDDEN_WEIGHT, TERMS["hidden"]))
)


def step_settings(problem: Problem, remat: str = "none") -> StepSettings:
    """Returns the settings of a distillation step without dropout."""
    return StepSettings(problem.model.graph, (OBJECTIVE,), problem.spec.scale, remat=remat)


def teachers_of(problem: Problem, members: int = 1) -> dict[str, dict[str, jax.Array]]:
    """Returns the same adapter for every member, [M, ...]."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * members), problem.adapter)


def load_batches(problem: Problem, members: int = 1, **train: Any) -> tuple[GroupLoader, list[list[Sequence[int]]]]:
    """Returns a loader with signals of the problem's pairs, and the numbers of all batches in order."""
    config = train_config(**train)
    batches = sequential_batches(len(problem.pairs), config.batch_size, members)
    groups = [make_group(problem.pairs, POSITIONS)] * members
    loader = make_loader(groups, batches, POSITIONS, OBJECTIVE, problem.model, config)
    teachers_M = teachers_of(problem, members)
    return with_signals(loader, teachers_M, problem.spec.scale, config, pathlib.Path("unused"), {}), batches


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Returns the median time of a call; the first call, which compiles, does not count."""
    jax.block_until_ready(work())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_rate(dtype) -> float:
    """Measures FLOPs a second of a dense matrix product on this device, the reference for utilisation."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / seconds(lambda: product(x))


def show_table(head: list[str], rows: list[list[Any]]) -> None:
    """Prints a table with aligned columns and a dash for None."""

    def text(cell: Any) -> str:
        if cell is None:
            return "-"
        return f"{cell:.4g}" if isinstance(cell, float) else str(cell)

    cells = [[text(cell) for cell in row] for row in rows]
    print(tabulate(cells, head, tablefmt="plain", disable_numparse=True, stralign="right"))


def write_figures(path: str | None, figures: dict[str, Any]) -> None:
    """Writes figures as JSON, with a description of the machine."""
    if not path:
        return
    device = jax.devices()[0]
    machine = {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")
