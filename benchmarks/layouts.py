"""Compares the layouts of a decoder's layers (`rdjax.models.layers`): stacked and scanned, unstacked and looped over.

    python -m benchmarks.layouts [--cases=step:quickstart:6,generate:smollm2:30] [--repeats=20]

A case is <program>:<shape>:<layers>. Programs: `step` (4 pairs), `step5` (five members), `generate` (32 responses of 64
tokens). The layouts take turns in one process, so that a busy machine disturbs them alike; the table has the minimum
and the median of the times, and the first call, which compiles. For generation, "copied" is a stacked model that is
unstacked inside the program, as `rdjax.generate` does on CPUs.
"""

import functools
import statistics
import time
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from benchmarks import problem as problems
from benchmarks.problem import (
    Problem,
    load_batches,
    make_problem,
    show_table,
    step_settings,
    teachers_of,
    write_figures,
)
from rdjax.distillation.step import init_state, train_step
from rdjax.distillation.updates import put_update
from rdjax.generation import decode
from rdjax.generation.options import Decoding
from rdjax.models.layers import generation_layout, stack_layers, unstack_layers

SHAPES = {
    # width, layers, heads, key-value heads, feed-forward, vocabulary
    "quickstart": (160, 6, 4, 4, 432, 1024),
    "20m": problems.SHAPES["20m"],
    "smollm2": (576, 30, 9, 3, 1536, 49152),
}
CASES = [
    "step:quickstart:6",
    "step5:quickstart:6",
    "step:20m:8",
    "step:20m:30",
    "step:smollm2:30",
    "generate:quickstart:6",
    "generate:20m:8",
    "generate:quickstart:30",
    "generate:smollm2:30",
]

_CASES = flags.DEFINE_list("cases", CASES, "<program>:<shape>:<layers> of each case.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Calls of each layout behind the first.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")

Run = Callable[[], Any]


def step_runs(problem: Problem, members: int) -> dict[str, Run]:
    """Returns a training step in each layout."""
    settings, optimizer = step_settings(problem), optax.adamw(1e-3)
    adapters_M = teachers_of(problem, members)
    loader, batches = load_batches(problem, members, batch_size=4, teacher_signals="host")
    update = put_update([loader], [loader.fetch(batches[0])])
    seeds_M = jnp.zeros(members, jnp.uint32)

    def run(base: dict[str, Any]) -> Run:
        def step() -> Any:
            state = init_state(adapters_M, optimizer)
            return train_step(state, base, update, seeds_M, settings=settings, optimizer=optimizer)

        return step

    return {layout: run(base) for layout, base in layouts(problem).items()}


def generation_runs(problem: Problem) -> dict[str, Run]:
    """Returns the generation of 32 responses of 64 tokens in each layout."""
    prompts = [pair.prompts.teacher_ids for pair in problem.pairs][:32]

    def run(base: dict[str, Any], layout: Callable[..., Any]) -> Run:
        model = types.SimpleNamespace(**vars(problem.model) | {"base": base})
        # A function of its own, so that JAX traces it under this layout.
        program = functools.partial(decode._decode.__wrapped__)
        compiled = jax.jit(program, static_argnames=("graph", "eos", "decoding"))

        def generate() -> Any:
            with mock.patch.multiple(decode, _decode=compiled, generation_layout=layout):
                decoding = Decoding(64, ignore_eos=True)
                return decode.generate(model, problem.adapter, problem.spec.scale, prompts, decoding, 32)

        return generate

    def as_given(base: dict[str, Any], mesh: Any) -> dict[str, Any]:
        return base

    bases = layouts(problem)
    runs = {layout: run(base, as_given) for layout, base in bases.items()}
    return runs | {"copied": run(bases["stacked"], generation_layout)}


def layouts(problem: Problem) -> dict[str, dict[str, Any]]:
    """Returns the problem's weights in both layouts."""
    stacked = stack_layers(problem.model.base)
    return {"stacked": stacked, "unstacked": jax.jit(unstack_layers)(stacked)}


def compare(runs: dict[str, Run], repeats: int) -> dict[str, dict[str, float]]:
    """Measures functions in turn; returns seconds."""
    figures, times = {}, {name: [] for name in runs}
    for name, run in runs.items():
        figures[name] = {"first": clock(run)}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(clock(run))
    for name, measured in times.items():
        figures[name] |= {"minimum": min(measured), "median": statistics.median(measured)}
    return figures


def clock(run: Run) -> float:
    """Returns the seconds of one call."""
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def main(argv: list[str]) -> None:
    """Measures all cases."""
    del argv
    rows, figures = [], {}
    for case in _CASES.value:
        program, shape, layers = case.split(":")
        response = 6 if shape == "quickstart" else 40
        with mock.patch.dict(problems.SHAPES, SHAPES):
            problem = make_problem(
                shape, 32 if program == "generate" else 8, response=response, layers=int(layers), tied_embeddings=True
            )
        members = int(program.removeprefix("step") or 1) if program.startswith("step") else 0
        runs = step_runs(problem, members) if members else generation_runs(problem)
        figures[case] = compare(runs, _REPEATS.value)
        stacked = figures[case]["stacked"]
        for layout, times in figures[case].items():
            ratios = [times[which] / stacked[which] for which in ("minimum", "median")]
            rows.append([case, layout, times["first"], times["minimum"], times["median"], *ratios])
    head = ["case", "layout", "first s", "minimum s", "median s", "minimum / stacked", "median / stacked"]
    show_table(head, rows)
    write_figures(_OUT.value, {"layouts": figures})


if __name__ == "__main__":
    app.run(main)
