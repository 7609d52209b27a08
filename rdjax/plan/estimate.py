"""Estimates a run before it starts: memory of a device, FLOPs, and the least time of an update."""

import dataclasses
import math
from typing import Any

import jax
from ml_collections import config_dict
from tabulate import tabulate

from rdjax.config import DISTILLED
from rdjax.data.positions import position_offsets
from rdjax.distillation.signals import signal_bytes
from rdjax.distillation.updates import GroupLoader
from rdjax.models.load import LanguageModel
from rdjax.models.lora import LoraSpec, lora_spec
from rdjax.parallel.mesh import AXES
from rdjax.plan.chips import Chip
from rdjax.plan.flops import Floor, Work, adapter_parameters, parameters, step_floor, step_flops, teacher_flops
from rdjax.plan.programs import Compiled, Programs, abstract_model, compile_program, lower


@dataclasses.dataclass(frozen=True)
class Workload:
    """Describes one update and what the teacher's pass stores for all of them.

    Attributes:
      student_lengths, teacher_lengths: tokens of each pair's sequence, prompt and response together.
      teacher_prefix: tokens that all teacher sequences share and that are read once.
      rows: micro-batches, rows of a micro-batch, tokens of a row.
      work: what the step computes.
      signal_bytes: bytes of the teacher signals of all pairs of the run.
    """

    student_lengths: list[int]
    teacher_lengths: list[int]
    teacher_prefix: int
    rows: tuple[int, int, int]
    work: Work
    signal_bytes: int


def describe_workload(config: config_dict.ConfigDict, model: LanguageModel, loader: GroupLoader) -> Workload:
    """Reads the sizes of the first update."""
    pairs = loader.pairs_M[0]
    batch = pairs[: config.train.batch_size]
    lengths = {
        side: [len(getattr(pair.prompts, f"{side}_ids")) + len(pair.response_ids) for pair in batch]
        for side in ("student", "teacher")
    }
    offsets, shape = position_offsets(pairs, loader.positions), loader.shapes[-1]
    work = Work(
        lengths[loader.objective.trained],
        int(offsets.predictions[len(batch)]),
        config.model.remat,
        loader.accumulation,
    )
    return Workload(
        lengths["student"],
        lengths["teacher"],
        shape.teacher.prefix,
        (loader.accumulation, loader.rows, getattr(shape, loader.objective.trained).tokens),
        work,
        signal_bytes(model, [offsets]),
    )


def device_bytes(tree: Any) -> int:
    """Counts the bytes that each device holds of a tree of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def make_plan(
    config: config_dict.ConfigDict, devices: Any, chip: Chip | None, memory: float | None, quick: bool
) -> dict[str, Any]:
    """Compiles a run's programs and returns all figures of its plan, as JSON can hold them.

    Args:
      devices: the devices to compile for; None for the local ones.
      chip: published figures of these devices; None if unknown, and then the plan has no floor.
      memory: bytes of one device; None if unknown.
      quick: compile with less effort.

    Raises:
      UserError: the mesh does not suit the devices or the model.
    """
    model = abstract_model(config, devices)
    spec = lora_spec(config.lora, model.config)
    loader, programs = lower(config, model, spec)
    distils = config.method in DISTILLED
    compiled = {"step": compile_program(programs.step, quick)}
    if distils:
        compiled["teacher"] = compile_program(programs.teacher, quick)
    workload = describe_workload(config, model, loader)
    return {
        **_model_figures(config, model, spec),
        "update": _update_figures(workload),
        "bytes_a_device": _held_bytes(model, programs),
        "signal_bytes": workload.signal_bytes if distils else 0,
        "memory": memory,
        "compiled": {name: dataclasses.asdict(program) for name, program in compiled.items()},
        "fits": all(_fits(program, memory) for program in compiled.values()),
        "step_flops": step_flops(model.config, spec, workload.work),
        "teacher_flops": (
            teacher_flops(model.config, workload.teacher_lengths, workload.teacher_prefix) if distils else 0.0
        ),
        "floor_seconds": _floor_seconds(config, model, spec, workload.work, chip),
        "not_counted": not_counted(config),
    }


def not_counted(config: config_dict.ConfigDict) -> list[str]:
    """Lists the parts of a run that the plan leaves out."""
    distils, loss = config.method in DISTILLED, config.loss
    parts = {
        "the training of the enhanced teacher (config.method = inst_tune_with_rule plans it)": (
            config.method == "rule_distill_enhanced"
        ),
        "batches of inputs that the rule is not about, if there are any": distils and loss.retain_weight,
        "samples with the rule in the student's prompt": distils and loss.consistency_weight,
        "practice": config.practice.rounds,
        "validation and evaluation": True,
    }
    return [part for part, is_done in parts.items() if is_done]


def _model_figures(config: config_dict.ConfigDict, model: LanguageModel, spec: LoraSpec) -> dict[str, Any]:
    """Returns what is known of the model and the mesh before anything is compiled."""
    return {
        "model": config.model.path,
        "devices": model.mesh.size,
        "device_kind": model.mesh.devices.flat[0].device_kind,
        "mesh": {axis: model.mesh.shape[axis] for axis in AXES},
        "parameters": parameters(model.config),
        "adapter_parameters": adapter_parameters(model.config, spec),
    }


def _update_figures(workload: Workload) -> dict[str, Any]:
    """Returns the sizes of an update; the teacher's tokens without the prefix."""
    pairs, prefix = len(workload.student_lengths), workload.teacher_prefix
    return {
        "pairs": pairs,
        "student_tokens": sum(workload.student_lengths),
        "teacher_tokens": sum(workload.teacher_lengths) - prefix * pairs,
        "teacher_prefix": prefix,
        "rows": list(workload.rows),
    }


def _held_bytes(model: LanguageModel, programs: Programs) -> dict[str, int]:
    """Counts the bytes that a device holds between updates."""
    trees = {"base": model.base, "adapter": programs.state.adapter, "optimizer": programs.state.moments}
    return {name: device_bytes(tree) for name, tree in trees.items()}


def _fits(program: Compiled, memory: float | None) -> bool:
    """Tells whether the compiler accepted a program and its peak is within a device's memory, if that is known."""
    return program.peak is not None and (memory is None or program.peak <= memory)


def _floor_seconds(
    config: config_dict.ConfigDict, model: LanguageModel, spec: LoraSpec, work: Work, chip: Chip | None
) -> dict[str, float] | None:
    """Returns the least seconds of an update and their parts, or None without published figures."""
    if chip is None:
        return None
    mesh = [model.mesh.shape[axis] for axis in AXES]
    weight_bytes = 1 if config.model.int8 else model.base["embed_tokens"].dtype.itemsize
    floor: Floor = step_floor(model.config, spec, work, chip, mesh, weight_bytes)
    return dataclasses.asdict(floor) | {"step": floor.seconds}


def plan_text(plan: dict[str, Any]) -> str:
    """Formats a plan as a table of two columns under the model's name."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    update = plan["update"]
    rows = {
        "devices": f"{plan['devices']} x {plan['device_kind']}, mesh {mesh}",
        "parameters": f"{plan['parameters'] / 1e9:.2f} billion; adapter {plan['adapter_parameters'] / 1e6:.1f} million",
        "an update": (
            f"{update['pairs']} pairs; tokens: student {update['student_tokens']}, teacher {update['teacher_tokens']} "
            f"after a shared prefix of {update['teacher_prefix']}; "
            f"micro-batches x rows x tokens: {' x '.join(map(str, update['rows']))}"
        ),
        "a device holds": ", ".join(f"{name} {_gib(size)}" for name, size in plan["bytes_a_device"].items()),
        "signals of all pairs": f"{_gib(plan['signal_bytes'])} in total",
        **{f"peak, {name}": _peak_text(program, plan["memory"]) for name, program in plan["compiled"].items()},
        "fits": "yes" if plan["fits"] else "NO",
        "not counted": ", ".join(plan["not_counted"]),
        "FLOPs": f"step {plan['step_flops'] / 1e12:.2f} T, its teacher pass {plan['teacher_flops'] / 1e12:.2f} T",
    }
    if plan["floor_seconds"]:
        rows["floor of a step"] = _floor_text(plan["floor_seconds"])
    table = tabulate(list(rows.items()), tablefmt="plain", disable_numparse=True)
    return "\n".join([plan["model"], *(f"  {line}" for line in table.splitlines())])


def _peak_text(program: dict[str, Any], memory: float | None) -> str:
    """Formats the compiler's answer for one program."""
    limit = "" if memory is None else f" of {_gib(memory)}"
    peak = f"does not fit: {program['refused']}" if program["peak"] is None else f"{_gib(program['peak'])}{limit}"
    return f"{peak} (compiled in {program['seconds']:.0f} s)"


def _floor_text(floor: dict[str, float]) -> str:
    """Formats the least time of an update and its parts, in milliseconds."""
    parts = ", ".join(f"{name} {1e3 * floor[name]:.1f}" for name in ("compute", "memory", "network"))
    return f"{1e3 * floor['step']:.1f} ms by published figures ({parts}); a model, not measured"


def _gib(size: float) -> str:
    """Formats bytes as GiB."""
    return f"{size / 2**30:.2f} GiB"
