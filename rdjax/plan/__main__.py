"""Will it fit, and how long can it take? `python -m rdjax.plan --config=configs/llama2_7b.py --topology=v5e:4x4`.

Compiles the teacher's pass and the training step of a config ahead of time, for a TPU topology or for the devices that
are here; no weights, tokenizer or data are read where the config carries the model's architecture. Exit status 1: it
does not fit.
"""

import dataclasses
import math
import pathlib
import re
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_dict

from rdjax.config import check_config
from rdjax.data.pairs import Pair, Prompts
from rdjax.data.positions import slot_begins
from rdjax.distill.optimizer import make_optimizer
from rdjax.distill.signals import signal_bytes
from rdjax.distill.step import TrainState, init_state, teacher_prefixes, teacher_signals, train_step
from rdjax.distill.updates import Updates, in_turn
from rdjax.errors import UserError
from rdjax.models.config import decoder_config_from_hf, read_decoder_config
from rdjax.models.layers import loops_over_layers, unstack_layers
from rdjax.models.load import LanguageModel, resolve_dtype, resolve_folder
from rdjax.models.lora import LoraSpec, init_adapter
from rdjax.models.sharding import check_mesh, param_shardings
from rdjax.models.weights import abstract_params
from rdjax.parallel.mesh import AXES, abstract_like, make_mesh, replicated
from rdjax.plan.chips import Chip, chip_of, describe
from rdjax.plan.flops import Work, adapter_parameters, parameters, step_floor, step_flops, teacher_flops
from rdjax.run import cli, experiment
from rdjax.run.pipeline import make_stage
from rdjax.storage.files import write_json

_TOPOLOGY = flags.DEFINE_string("topology", "", "<chip>:<shape>, e.g. v5e:4x4; without one, the devices that are here.")
_SLICES = flags.DEFINE_integer("slices", 1, "How many slices of that topology.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Let the compiler try less: sooner done, and memory is near, not exact.")
# allow_override: a process may know several commands that have one.
_OUT = flags.DEFINE_string("out", None, "Where the plan goes as JSON.", allow_override=True)

QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class Programs:
    """What a run repeats, lowered: the teacher's pass over an update's pairs and the step; the state, as shapes."""

    teacher: Any
    step: Any
    state: TrainState


def abstract_model(config: config_dict.ConfigDict, devices) -> LanguageModel:
    """The config's model with shapes in the place of weights."""
    mesh = make_mesh(config.mesh, devices)
    fields = config.model.architecture.to_dict()
    if fields:
        decoder = decoder_config_from_hf(fields, "config.model.architecture")
    else:
        decoder = read_decoder_config(resolve_folder(config.model.path, "model"))
    check_mesh(mesh, decoder)
    graph, shapes = abstract_params(decoder, resolve_dtype(config.model.dtype, mesh), config.model.int8, mesh)
    base = jax.tree.map(abstract_like, shapes, param_shardings(mesh, shapes))
    if loops_over_layers(decoder, mesh):
        base = unstack_layers(base, lambda leaf, layer: _own(leaf))
    return LanguageModel(config.model.path, decoder, graph, base, None, (0,), mesh)


def made_up_pairs(config: config_dict.ConfigDict) -> list[Pair]:
    """Pairs of the lengths that the config plans with; their prompts share the rule alone."""
    plan = config.plan
    rule, prompt = (1,) * plan.rule_tokens, (2,) * (plan.prompt_tokens - 1)
    pairs = []
    for number in range(config.task.k):
        own = (3 + number % 100, *prompt)
        pairs.append(Pair(Prompts("", "", rule + own, own, len(own), f"pair {number}"), (4,) * plan.response_tokens))
    return pairs


def lower(config: config_dict.ConfigDict, model: LanguageModel, spec: LoraSpec) -> tuple[Updates, Programs]:
    """The programs of a run, ready to be compiled."""
    stage = make_stage(config, spec, model.config.width, "student", config.method, valid_is_gold=True)
    pairs = [made_up_pairs(config)]
    numbers = in_turn(len(pairs[0]), config.train.batch_size, 1)
    updates = Updates.make(pairs, numbers, stage.slots, stage.objective, model, config.train)
    whole = replicated(model.mesh)
    adapters_M = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[None], init_adapter(model.config, spec, 0)))
    adapters_M = abstract_like(adapters_M, whole)
    optimizer = make_optimizer(config.optimizer, len(numbers) * config.train.epochs)
    state = jax.eval_shape(lambda adapters_M: init_state(adapters_M, optimizer), adapters_M)
    state = abstract_like(state, whole)
    ((batch, signals),) = updates.abstract_updates()  # pairs of one length have one shape

    def prefix_C(side: str):
        length = getattr(updates.prefixes, side)
        return jax.ShapeDtypeStruct((length,), jnp.int32, sharding=whole) if length else None

    prefix_M = None
    if prefix_C("teacher") is not None:
        read = teacher_prefixes.eval_shape(model.graph, model.base, adapters_M, prefix_C("teacher"), spec.scale)
        prefix_M = jax.tree.map(lambda leaf: abstract_like(leaf, _heads(model.mesh, leaf.ndim)), read)
    asked = model.graph, model.base, adapters_M, batch, prefix_M, spec.scale
    step = train_step.lower(
        state,
        model.base,
        batch,
        signals,
        prefix_C(updates.trained),
        jax.ShapeDtypeStruct((1,), jnp.uint32, sharding=whole),
        graph=model.graph,
        optimizer=optimizer,
        objective=stage.objective,
        options=stage.options,
    )
    return updates, Programs(teacher_signals.lower(*asked), step, state)


def _heads(mesh: Mesh, rank: int) -> NamedSharding:
    """Of [.., K, C, H] as the compiler leaves it in a run: heads where those that made them lie."""
    return NamedSharding(mesh, P(*(None,) * (rank - 3), "tensor") if mesh.shape["tensor"] > 1 else P())


def _own(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A layer's part of a stacked parameter."""
    sharding = NamedSharding(leaf.sharding.mesh, P(*leaf.sharding.spec[1:]))
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program: bytes a device at its peak, or why it does not fit; its own seconds."""

    peak: int | None
    refused: str
    seconds: float


def compile_program(lowered: Any, quick: bool) -> Compiled:
    """Compiles; a program that needs more memory than a device has is an answer, too."""
    began = time.monotonic()
    try:
        memory = lowered.compile(compiler_options=QUICK if quick else None).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used [\d.]+\w? of [\d.]+\w? \w+", str(error))
        said = used[0] if used else " ".join(str(error).removeprefix("RESOURCE_EXHAUSTED: ").split())[:200]
        return Compiled(None, said, time.monotonic() - began)
    return Compiled(memory.peak_memory_in_bytes, "", time.monotonic() - began)


def device_bytes(tree: Any) -> int:
    """Bytes that each device holds of a tree of placed shapes."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def make_plan(
    config: config_dict.ConfigDict, devices: Any, chip: Chip | None, memory: float | None, quick: bool
) -> dict[str, Any]:
    """All figures of a plan.

    Args:
      devices: to compile for; None for those that are here.
      chip: their published figures, where there are some.
      memory: bytes of one.
    """
    model = abstract_model(config, devices)
    lora = config.lora
    spec = LoraSpec(lora.rank, lora.alpha, lora.dropout, tuple(lora.targets))
    updates, programs = lower(config, model, spec)
    pairs, rows = updates.pairs[0], updates.shapes[-1].student
    distils = config.method.startswith("rule_distill")
    compiled = {"step": compile_program(programs.step, quick)}
    if distils:
        compiled["teacher"] = compile_program(programs.teacher, quick)
    taken = pairs[: config.train.batch_size]
    sides = {
        side: [len(getattr(pair.prompts, f"{side}_ids")) + len(pair.response_ids) for pair in taken]
        for side in ("student", "teacher")
    }
    begins = slot_begins(pairs, updates.slots)
    predicted = slot_begins(taken, updates.slots).predict[-1]
    work = Work(sides[updates.trained], int(predicted), config.model.remat, updates.accumulation)
    prefix = updates.prefixes.teacher
    shape = [model.mesh.shape[axis] for axis in AXES]
    weight_bytes = 1 if config.model.int8 else model.base["embed_tokens"].dtype.itemsize
    floor = step_floor(model.config, spec, work, chip, shape, weight_bytes) if chip else None
    peaks = [each.peak for each in compiled.values()]
    fits = all(peak is not None and (memory is None or peak <= memory) for peak in peaks)
    return {
        "model": config.model.path,
        "devices": model.mesh.size,
        "device_kind": model.mesh.devices.flat[0].device_kind,
        "mesh": dict(zip(AXES, shape, strict=True)),
        "parameters": parameters(model.config),
        "adapter_parameters": adapter_parameters(model.config, spec),
        "update": {
            "pairs": len(taken),
            "student_tokens": sum(sides["student"]),
            "teacher_tokens": sum(sides["teacher"]) - prefix * len(taken),
            "teacher_prefix": prefix,
            "rows": [updates.accumulation, updates.rows, rows.tokens],
        },
        "bytes_a_device": {
            "base": device_bytes(model.base),
            "adapter": device_bytes(programs.state.adapter),
            "optimizer": device_bytes(programs.state.moments),
        },
        "signal_bytes": signal_bytes(model, [begins]) if distils else 0,
        "memory": memory,
        "compiled": {name: dataclasses.asdict(each) for name, each in compiled.items()},
        "fits": fits,
        "step_flops": step_flops(model.config, spec, work),
        "teacher_flops": teacher_flops(model.config, sides["teacher"], prefix) if distils else 0.0,
        "floor_seconds": dataclasses.asdict(floor) | {"step": floor.seconds} if floor else None,
    }


def show(plan: dict[str, Any]) -> str:
    """The plan as text."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    update, held = plan["update"], plan["bytes_a_device"]
    lines = {
        "devices": f"{plan['devices']} x {plan['device_kind']}, mesh {mesh}",
        "parameters": f"{plan['parameters'] / 1e9:.2f} billion; adapter {plan['adapter_parameters'] / 1e6:.1f} million",
        "an update": (
            f"{update['pairs']} pairs: {update['student_tokens']} tokens for the student, {update['teacher_tokens']} "
            f"for the teacher behind {update['teacher_prefix']} that it reads once; "
            f"micro-batches x rows x tokens {' x '.join(map(str, update['rows']))}"
        ),
        "a device holds": ", ".join(f"{name} {_gib(size)}" for name, size in held.items()),
        "signals of all pairs": f"{_gib(plan['signal_bytes'])} in all",
    }
    room = "" if plan["memory"] is None else f" of {_gib(plan['memory'])}"
    for name, each in plan["compiled"].items():
        said = f"{_gib(each['peak'])}{room}" if each["peak"] is not None else f"does not fit: {each['refused']}"
        lines[f"peak, {name}"] = f"{said} (compiled in {each['seconds']:.0f} s)"
    lines["fits"] = "yes" if plan["fits"] else "NO"
    lines["FLOPs"] = f"{plan['step_flops'] / 1e12:.2f} T a step; {plan['teacher_flops'] / 1e12:.2f} T its teacher pass"
    floor = plan["floor_seconds"]
    if floor:
        parts = ", ".join(f"{name} {1e3 * floor[name]:.1f}" for name in ("compute", "memory", "network"))
        lines["floor of a step"] = f"{1e3 * floor['step']:.1f} ms by published figures ({parts}); a model, not measured"
    width = max(map(len, lines))
    return "\n".join([plan["model"], *(f"  {name.ljust(width)}  {said}" for name, said in lines.items())])


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    config = experiment.config("configs/llama2_7b.py")
    check_config(config)
    if not config.task.k:
        raise UserError("config.task.k = 0 takes all samples of a folder; a plan wants their number")
    if _SLICES.value > 1 and not _TOPOLOGY.value:
        raise UserError(f"--slices={_SLICES.value} is of a topology; give one, e.g. --topology=v5e:4x4")
    if _TOPOLOGY.value:
        chip, devices = chip_of(_TOPOLOGY.value), describe(_TOPOLOGY.value, _SLICES.value)
        memory = chip.memory
    else:
        chip, devices = None, None
        memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    plan = make_plan(config, devices, chip, memory, _QUICK.value)
    plan = {"topology": _TOPOLOGY.value, "slices": _SLICES.value, "quick": _QUICK.value, **plan}
    print(show(plan))
    if _OUT.value:
        write_json(pathlib.Path(_OUT.value), plan)
    if not plan["fits"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
