"""Puts the figures of a plan together: memory, FLOPs, the least time of a step."""

import dataclasses
import math
from typing import Any

import jax
from ml_collections import config_dict

from rdjax.data.positions import position_offsets
from rdjax.distill.signals import signal_bytes
from rdjax.models.lora import LoraSpec
from rdjax.parallel.mesh import AXES
from rdjax.plan.chips import Chip
from rdjax.plan.flops import Work, adapter_parameters, parameters, step_floor, step_flops, teacher_flops
from rdjax.plan.programs import abstract_model, compile_program, lower


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
    loader, programs = lower(config, model, spec)
    pairs, rows = loader.pairs_M[0], loader.shapes[-1].student
    distils = config.method.startswith("rule_distill")
    compiled = {"step": compile_program(programs.step, quick)}
    if distils:
        compiled["teacher"] = compile_program(programs.teacher, quick)
    taken = pairs[: config.train.batch_size]
    sides = {
        side: [len(getattr(pair.prompts, f"{side}_ids")) + len(pair.response_ids) for pair in taken]
        for side in ("student", "teacher")
    }
    offsets = position_offsets(pairs, loader.positions)
    predicted = offsets.predictions[len(taken)]
    work = Work(sides[loader.objective.trained], int(predicted), config.model.remat, loader.accumulation)
    prefix = loader.shapes[-1].teacher.prefix
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
            "rows": [loader.accumulation, loader.rows, rows.tokens],
        },
        "bytes_a_device": {
            "base": device_bytes(model.base),
            "adapter": device_bytes(programs.state.adapter),
            "optimizer": device_bytes(programs.state.moments),
        },
        "signal_bytes": signal_bytes(model, [offsets]) if distils else 0,
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
