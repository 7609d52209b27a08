"""Measures time and memory of the teacher's pass and of a step as the problem grows, one size at a time.

    python -m benchmarks.scaling [--shape=20m] [--out=benchmarks/results/scaling_cpu.json]

The teacher's pass is over all k pairs, once with the shared rule computed once and once with the rule in every row. A
step does not include it: the pass runs once for all epochs.
"""

import functools
from unittest import mock

import jax.numpy as jnp
import optax
import tqdm
from absl import app, flags

from benchmarks.problem import (
    SHAPES,
    load_batches,
    make_problem,
    seconds,
    show_table,
    step_settings,
    teachers_of,
    write_figures,
)
from rdjax.data import prefix
from rdjax.distillation.step import init_state, train_step
from rdjax.distillation.teacher import make_teacher
from rdjax.distillation.updates import GroupLoader, put_update

_SHAPE = flags.DEFINE_enum("shape", "20m", list(SHAPES), "Of the random Llama.")
_BATCH = flags.DEFINE_integer("batch", 4, "Pairs an update.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")

# The first values form the base problem; each of the others changes one size of it.
SIZES = {
    "k": (64, 128),
    "rule": (60, 250, 1000),
    "response": (40, 160),
    "vocab": (6000, 32000),
    "layers": (8, 16),
}


def measure(**sizes: int) -> tuple[float, float, float, float]:
    """Measures seconds of the teacher's pass with the prefix reused and without, of a step, and its temporary MiB."""
    problem = make_problem(_SHAPE.value, **sizes)
    model, teachers_M = problem.model, teachers_of(problem)

    def teacher_pass(loader: GroupLoader):
        compute_signals = make_teacher(model, teachers_M, problem.spec.scale, loader.prefix_MC("teacher"))
        return [compute_signals(loader.mesh_batch(numbers)) for numbers in batches]

    reused, batches = load_batches(problem, batch_size=_BATCH.value, teacher_signals="online")
    with mock.patch.object(prefix, "SHORTEST_PREFIX", 10**9):
        plain, _ = load_batches(problem, batch_size=_BATCH.value, teacher_signals="online")
    update = put_update([reused], [reused.fetch(batches[0])])
    optimizer = optax.adamw(1e-3)
    step = functools.partial(train_step, settings=step_settings(problem), optimizer=optimizer)
    given = model.base, update, jnp.zeros(1, jnp.uint32)
    program = train_step.lower(init_state(teachers_M, optimizer), *given, **step.keywords).compile()
    return (
        seconds(lambda: teacher_pass(reused), repeats=2),
        seconds(lambda: teacher_pass(plain), repeats=2),
        seconds(lambda: step(init_state(teachers_M, optimizer), *given), repeats=2),
        program.memory_analysis().temp_size_in_bytes / 2**20,
    )


def main(argv: list[str]) -> None:
    del argv
    first = {name: values[0] for name, values in SIZES.items()}
    problems = {"as it is": first}
    problems |= {f"{name} {value}": first | {name: value} for name, values in SIZES.items() for value in values[1:]}
    made = {name: measure(**sizes) for name, sizes in tqdm.tqdm(problems.items(), unit="size")}
    print(f"{_SHAPE.value}, batch {_BATCH.value}; as it is: " + ", ".join(f"{name} {v}" for name, v in first.items()))
    head = ["", "teacher's pass, s", "the rule in every row, s", "ratio", "step, ms", "temporary MiB"]
    rows = [[name, t, plain, t / plain, 1e3 * step, memory] for name, (t, plain, step, memory) in made.items()]
    show_table(head, rows)
    names = ("teacher_seconds", "teacher_seconds_rule_in_every_row", "ratio", "step_milliseconds", "temporary_mib")
    figures = {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}
    write_figures(_OUT.value, {"shape": _SHAPE.value, "batch": _BATCH.value, "sizes": figures})


if __name__ == "__main__":
    app.run(main)
