"""Lowers and compiles the programs of a run ahead of time, without weights or data."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_dict

from rdjax.data.groups import make_group
from rdjax.data.pairs import Pair, Prompts
from rdjax.distillation.optimizer import make_optimizer, with_auto_rate
from rdjax.distillation.step import StepSettings, TrainState, init_state, train_step
from rdjax.distillation.teacher import teacher_prefixes, teacher_signals
from rdjax.distillation.updates import GroupLoader, abstract_updates, make_loader, sequential_batches
from rdjax.models.decoder import Prefix
from rdjax.models.delta_net import DeltaState
from rdjax.models.families.registry import decoder_config_from_hf, read_decoder_config
from rdjax.models.layers import training_layout
from rdjax.models.load import LanguageModel, resolve_dtype, resolve_folder
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.models.sharding import check_mesh, param_shardings
from rdjax.models.weights import abstract_params
from rdjax.parallel.mesh import abstract_like, make_mesh, replicated
from rdjax.run.prepare import check_layers
from rdjax.run.stages import make_stage

# Compiler options of a quick plan: XLA's effort level O0 by its number, the one spelling that all supported versions of
# JAX accept.
QUICK = {"optimization_level": 9, "memory_fitting_level": 9}


@dataclasses.dataclass(frozen=True)
class Programs:
    """Holds the lowered programs that a run repeats.

    Attributes:
      teacher: the pass that computes the teacher signals of one update.
      step: one update of the adapter.
      state: shapes of the adapter and the optimizer state that the step takes.
    """

    teacher: Any
    step: Any
    state: TrainState


def abstract_model(config: config_dict.ConfigDict, devices) -> LanguageModel:
    """Returns the config's model with shapes and shardings in place of weights.

    Raises:
      UserError: the model's config is missing or not supported, or the mesh does not suit it.
    """
    mesh = make_mesh(config.mesh, devices)
    fields = config.model.architecture.to_dict()
    if fields:
        decoder = decoder_config_from_hf(fields, "config.model.architecture")
    else:
        decoder = read_decoder_config(resolve_folder(config.model.path, "model"))
    check_mesh(mesh, decoder)
    graph, shapes = abstract_params(decoder, resolve_dtype(config.model.dtype, mesh), config.model.int8, mesh)
    base = jax.tree.map(abstract_like, shapes, param_shardings(mesh, shapes))
    base = training_layout(base, decoder.layers, mesh)
    return LanguageModel(config.model.path, decoder, graph, base, None, (0,), mesh)


def planned_pairs(config: config_dict.ConfigDict) -> list[Pair]:
    """Returns `task.k` pairs (`plan.samples` where that is 0) of lengths in `plan`; their prompts share the rule."""
    plan = config.plan
    rule, prompt = (1,) * plan.rule_tokens, (2,) * (plan.prompt_tokens - 1)
    pairs = []
    for number in range(config.task.k or plan.samples):
        student = (3 + number % 100, *prompt)
        prompts = Prompts("", "", rule + student, student, len(student), f"pair {number}")
        pairs.append(Pair(prompts, (4,) * plan.response_tokens))
    return pairs


def lower(config: config_dict.ConfigDict, model: LanguageModel, spec: LoraSpec) -> tuple[GroupLoader, Programs]:
    """Lowers the programs of a run; returns the loader of its pairs too, which knows the batch shapes."""
    check_layers(config.loss.hidden_layers, model)
    stage = make_stage(config, spec, model.config.width, "student", config.method, valid_is_gold=True)
    group = make_group(planned_pairs(config), stage.positions)
    batches = sequential_batches(len(group.pairs), config.train.batch_size, members=1)
    loader = make_loader([group], batches, stage.positions, stage.objective, model, config.train)
    whole = replicated(model.mesh)
    adapters_M = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[None], init_adapter(model.config, spec, 0)))
    adapters_M = abstract_like(adapters_M, whole)
    steps = len(batches) * config.train.epochs or config.train.updates
    optimizer = make_optimizer(with_auto_rate(config, model.config.width).optimizer, steps)
    state = abstract_like(jax.eval_shape(lambda adapters_M: init_state(adapters_M, optimizer), adapters_M), whole)
    (update,) = abstract_updates([loader], [[numbers] for numbers in batches])  # pairs of one length have one shape
    prefix_M, prefix = None, loader.prefix_tokens("teacher")
    if prefix is not None:
        prefix_MC = abstract_like(prefix, whole)
        read = teacher_prefixes.eval_shape(model.graph, model.base, adapters_M, prefix_MC, spec.scale)
        prefix_M = _abstract_prefix(read, model.mesh)
    settings = StepSettings(model.graph, stage.objectives, stage.scale, stage.dropout, stage.remat)
    seeds_M = jax.ShapeDtypeStruct((1,), jnp.uint32, sharding=whole)
    step = train_step.lower(state, model.base, update, seeds_M, settings=settings, optimizer=optimizer)
    teacher = teacher_signals.lower(model.graph, model.base, adapters_M, update[0].batch, prefix_M, spec.scale)
    return loader, Programs(teacher, step, state)


def _abstract_prefix(prefix_M: Prefix, mesh: Mesh) -> Prefix:
    """Describes prefixes with the shardings that the compiler gives them.

    Keys and values [.., K, C, H] and the memories of delta nets [.., I, H, J] have their heads over the tensor axis.
    """

    def by_heads(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = P(*(None,) * (leaf.ndim - 3), "tensor") if mesh.shape["tensor"] > 1 else P()
        return abstract_like(leaf, NamedSharding(mesh, spec))

    described = jax.tree.map(by_heads, prefix_M)
    for mixer, past in prefix_M.items():
        if isinstance(past, DeltaState):
            described[mixer] = described[mixer]._replace(conv_BZX=abstract_like(past.conv_BZX, replicated(mesh)))
    return described


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Holds the compiler's answer for one program.

    Attributes:
      peak: bytes of one device at the peak, arguments included; None if the compiler refused the program.
      refused: why it was refused, else "".
      seconds: time to compile.
    """

    peak: int | None
    refused: str
    seconds: float


def compile_program(lowered: Any, quick: bool) -> Compiled:
    """Compiles a program; one that needs more memory than a device has is an answer, not an error."""
    began = time.monotonic()
    try:
        memory = lowered.compile(compiler_options=QUICK if quick else None).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used [\d.]+\w? of [\d.]+\w? \w+", str(error))
        reason = used[0] if used else " ".join(str(error).removeprefix("RESOURCE_EXHAUSTED: ").split())[:200]
        return Compiled(None, reason, time.monotonic() - began)
    return Compiled(memory.peak_memory_in_bytes, "", time.monotonic() - began)
