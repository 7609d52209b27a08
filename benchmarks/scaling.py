"""Measures time and memory of the teacher's pass and of a step as the problem grows, one size at a time.

    python -m benchmarks.scaling [--shape=20m] [--out=benchmarks/results/scaling_cpu.json]

The teacher's pass is over all k pairs, once with the shared rule computed once and once with the rule in every row. A
step does not include it: the pass runs once for all epochs.
"""

import functools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import tqdm
from absl import app, flags

from benchmarks.problem import SHAPES, SLOTS, make_problem, seconds, show_table, train_config, write_figures
from rdjax.data import batches
from rdjax.distill.signals import make_signal_function
from rdjax.distill.step import Objective, StepOptions, init_state, train_step
from rdjax.distill.updates import Updates, in_turn

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
    model, pairs = problem.model, problem.pairs
    objective = Objective("distill", "kl", 1.0, 2.44)
    options = StepOptions(problem.spec.scale, 0.0, "none")
    train = train_config(batch_size=_BATCH.value, teacher_signals="online")
    teachers_M = jax.tree.map(lambda leaf: leaf[None], problem.adapter)
    numbers = in_turn(len(pairs), _BATCH.value, 1)

    def updates() -> Updates:
        made = Updates.make([pairs], numbers, SLOTS, objective, model, train)
        return made.with_signals(teachers_M, problem.spec.scale, train, pathlib.Path("unused"))

    def teacher_pass(made: Updates):
        ask = make_signal_function(model, teachers_M, problem.spec.scale, made.prefix_C("teacher"))
        return [ask(batch) for batch in map(made.batch, numbers)]

    reused = updates()
    with mock.patch.object(batches, "PREFIX_PAYS", 10**9):
        plain = updates()
    batch, signals = reused.place(reused.fetch(numbers[0]))
    optimizer = optax.adamw(1e-3)
    step = functools.partial(train_step, graph=model.graph, optimizer=optimizer, objective=objective, options=options)
    given = model.base, batch, signals, reused.trained_prefix_C, jnp.zeros(1, jnp.uint32)
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
