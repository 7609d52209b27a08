"""Measures the time and memory of the parts of a distillation step.

    python -m benchmarks.parts [--shape=20m] [--batch=4] [--out=benchmarks/results/parts_cpu.json]

Utilisation is FLOPs a second as a share of those of a dense matrix product in the same run. A forward pass counts 2
FLOPs a parameter and token, a step of adapter training 4 (forward, and backward to the activations), plus attention.
Padding and the shared prefix, which is computed once, do not count. Work that a program skips at positions that nothing
reads (the head, some of the last layer) counts as done. Memory is the compiler's count of a program's temporary
buffers, without its arguments.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from benchmarks.problem import (
    SHAPES,
    load_batches,
    make_problem,
    matmul_rate,
    seconds,
    show_table,
    step_settings,
    teachers_of,
    write_figures,
)
from rdjax.distillation.step import evaluate_loss, init_state, loss_and_gradient, train_step
from rdjax.distillation.teacher import make_teacher
from rdjax.distillation.updates import put_update
from rdjax.plan.flops import attention_flops

_SHAPE = flags.DEFINE_enum("shape", "20m", list(SHAPES), "Of the random Llama.")
_BATCH = flags.DEFINE_integer("batch", 4, "Pairs an update.")
_RULE = flags.DEFINE_integer("rule", 60, "Tokens of the rule.")
_PROMPT = flags.DEFINE_integer("prompt", 60, "Tokens of a student's prompt.")
_RESPONSE = flags.DEFINE_integer("response", 40, "Tokens of a response.")
_REMAT = flags.DEFINE_enum("remat", "none", ["none", "full", "dots"], "What the backward pass computes anew.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")


def main(argv: list[str]) -> None:
    del argv
    problem = make_problem(_SHAPE.value, 2 * _BATCH.value, _RULE.value, _PROMPT.value, _RESPONSE.value)
    model, pairs = problem.model, problem.pairs
    settings, optimizer = step_settings(problem, _REMAT.value), optax.adamw(1e-3)
    stacked, seeds_M = teachers_of(problem), jnp.zeros(1, jnp.uint32)
    loader, batches = load_batches(problem, batch_size=_BATCH.value, teacher_signals="host")
    update = put_update([loader], [loader.fetch(batches[0])])
    batch = update[0].batch
    compute_signals = make_teacher(model, stacked, problem.spec.scale, loader.prefix_MC("teacher"))
    forward = functools.partial(evaluate_loss, settings=settings)
    one = jax.tree.map(lambda leaf: leaf[0], update)
    gradient = jax.jit(lambda adapter, base, update: loss_and_gradient(adapter, base, update, None, settings))
    step = functools.partial(train_step, settings=settings, optimizer=optimizer)

    def whole_step():
        return step(init_state(stacked, optimizer), model.base, update, seeds_M)

    times = {
        "teacher pass": seconds(lambda: compute_signals(batch)),
        "student forward": seconds(lambda: forward(stacked, model.base, update)),
        "forward and backward": seconds(lambda: gradient(problem.adapter, model.base, one)),
        "whole step": seconds(whole_step) - seconds(lambda: init_state(stacked, optimizer)),
    }
    programs = {
        "student forward": forward.func.lower(stacked, model.base, update, **forward.keywords),
        "forward and backward": gradient.lower(problem.adapter, model.base, one),
        "whole step": step.func.lower(init_state(stacked, optimizer), model.base, update, seeds_M, **step.keywords),
    }
    memory = {name: low.compile().memory_analysis().temp_size_in_bytes / 2**20 for name, low in programs.items()}
    chosen = [pairs[number] for number in batches[0][0]]
    tokens = {
        side: [len(getattr(pair.prompts, f"{side}_ids")) + len(pair.response_ids) for pair in chosen]
        for side in ("teacher", "student")
    }
    rate = matmul_rate(model.base["embed_tokens"].dtype)
    rows = []
    for name, time in times.items():
        side = "teacher" if name == "teacher pass" else "student"
        prefix, lengths = getattr(loader.shapes[0], side).prefix, tokens[side]
        passes = 1 if name in ("teacher pass", "student forward") else 2
        read = sum(lengths) - len(lengths) * prefix
        attention = attention_flops(model.config, lengths) - len(lengths) * attention_flops(model.config, [prefix])
        flops = passes * (2 * problem.parameters * read + attention)
        rows.append([name, 1e3 * time, read / time, flops / time / rate, memory.get(name)])
    print(f"{_SHAPE.value}: {problem.parameters / 1e6:.1f}M parameters that multiply; {rate / 1e9:.0f} GFLOP/s dense")
    print(
        f"an update: {sum(tokens['student'])} student and {sum(tokens['teacher'])} teacher tokens, "
        f"{batch.student.tokens_BT.size} and {batch.teacher.tokens_BT.size} as they are padded less the prefixes"
    )
    show_table(["part", "ms", "tokens/s", "utilisation", "temporary MiB"], rows)
    names = ("milliseconds", "tokens_a_second", "utilisation", "temporary_mib")
    figures = {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}
    write_figures(_OUT.value, {"shape": _SHAPE.value, "batch": _BATCH.value, "dense_flops": rate, "parts": figures})


if __name__ == "__main__":
    app.run(main)
