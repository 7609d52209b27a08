"""Compares generation, the teacher's pass and an update on a checkpoint with transformers and peft, in turn.

    python -m benchmarks.real_model --model=<folder or hub id> [--out=benchmarks/results/real_model_cpu.json]

Both take the same weights, in the same dtype, and the same random tokens: generation of `new` tokens behind prompts of
`prompt` (greedy, nothing ends early), the teacher's pass over `batch` rows of a rule, a prompt and a response, and an
update of a LoRA adapter on all projections of attention from rows of a prompt and a response. A third of a prompt is a
template, which is the same in all of them. PyTorch has the setting that benchmarks/against_pytorch.py calls tuned: one
model with the adapter switched off for the teacher, logits and hidden states at the responses alone. Each is run once
before it counts; then the two alternate, and the medians of the times and of their ratios are shown. Needs the extra
[parity].
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from benchmarks.problem import (
    SPEC,
    Problem,
    load_batches,
    random_pairs,
    show_table,
    step_settings,
    teachers_of,
    write_figures,
)
from configs import base
from rdjax.config import DEFAULT_HIDDEN_WEIGHT
from rdjax.distillation.step import init_state, train_step
from rdjax.distillation.teacher import make_teacher
from rdjax.distillation.updates import put_update
from rdjax.generation.decode import generate
from rdjax.generation.options import Decoding
from rdjax.models.load import load_model, resolve_folder
from rdjax.models.lora import init_adapter
from rdjax.parallel.mesh import make_mesh, put, replicated

_MODEL = flags.DEFINE_string("model", None, "A folder or hub id.", required=True)
_BATCH = flags.DEFINE_integer("batch", 4, "Pairs an update.")
_RULE = flags.DEFINE_integer("rule", 60, "Tokens of the rule.")
_PROMPT = flags.DEFINE_integer("prompt", 60, "Tokens of a prompt.")
_RESPONSE = flags.DEFINE_integer("response", 60, "Tokens of a response.")
_PROMPTS = flags.DEFINE_integer("prompts", 64, "Prompts to answer.")
_ROWS = flags.DEFINE_integer("rows", 64, "Prompts that are answered at once.")
_NEW = flags.DEFINE_integer("new", 64, "New tokens a prompt.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Times that each is measured.")
PARTS = ("generation", "teacher's pass", "update")
_PARTS = flags.DEFINE_multi_enum("parts", PARTS, PARTS, "What is measured.")
_OUT = flags.DEFINE_string("out", None, "Where the figures go as JSON.")

RATE = 1e-3


def load_problem() -> Problem:
    """Returns the checkpoint with random pairs of these lengths, without spread."""
    model = load_model(_MODEL.value, "auto", make_mesh(base.get_config().mesh))
    adapter = put(init_adapter(model.config, SPEC, seed=0), replicated(model.mesh))
    count = max(_BATCH.value, _PROMPTS.value)
    pairs = random_pairs(model.config.vocab, count, _RULE.value, _PROMPT.value, _RESPONSE.value, spread=0.0)
    return Problem(model, pairs, adapter, SPEC)


def our_work(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Returns what is measured of rdjax, by name."""
    model, settings, optimizer = problem.model, step_settings(problem), optax.adamw(RATE)
    stacked, seeds_M = teachers_of(problem), jnp.zeros(1, jnp.uint32)
    learnt = dataclasses.replace(problem, pairs=problem.pairs[: _BATCH.value])
    loader, batches = load_batches(learnt, batch_size=_BATCH.value, teacher_signals="host")
    update = put_update([loader], [loader.fetch(batches[0])])
    compute_signals = make_teacher(model, stacked, problem.spec.scale, loader.prefix_MC("teacher"))
    step = functools.partial(train_step, settings=settings, optimizer=optimizer)
    prompts = [pair.prompts.student_ids for pair in problem.pairs[: _PROMPTS.value]]
    decoding = Decoding(_NEW.value, ignore_eos=True)
    return {
        "generation": lambda: generate(model, problem.adapter, problem.spec.scale, prompts, decoding, _ROWS.value),
        "teacher's pass": lambda: compute_signals(update[0].batch),
        "update": lambda: step(init_state(stacked, optimizer), model.base, update, seeds_M),
    }


def their_work(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Returns the same of transformers and peft."""
    import peft
    import torch
    from torch.nn import functional
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[problem.model.base["embed_tokens"].dtype.name]
    folder = resolve_folder(_MODEL.value, "model")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).to(device)
    config = peft.LoraConfig(
        r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.targets), task_type="CAUSAL_LM"
    )
    student = peft.get_peft_model(loaded, config)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    inner, head = student.base_model.model.model, student.base_model.model.lm_head
    pairs, response = problem.pairs[: _BATCH.value], slice(-_RESPONSE.value - 1, -1)
    rows = {
        side: torch.tensor([(*getattr(pair.prompts, f"{side}_ids"), *pair.response_ids) for pair in pairs]).to(device)
        for side in ("teacher", "student")
    }
    prompts = torch.tensor([pair.prompts.student_ids for pair in problem.pairs[: _PROMPTS.value]]).to(device)

    def states(side: str):
        """Returns normalised inputs of all blocks [L, B, T, D] and logits [B, T, V], at the responses."""
        out = inner(rows[side], output_hidden_states=True, use_cache=False)
        hidden = torch.stack([layer[:, response] for layer in out.hidden_states[:-1]])
        return functional.normalize(hidden, dim=-1), head(out.last_hidden_state[:, response])

    def finish(value):
        if device == "cuda":
            torch.cuda.synchronize()
        return value

    def teacher():
        with torch.no_grad(), student.disable_adapter():
            return finish(states("teacher"))

    units_t, logits_t = teacher()

    def update():
        optimizer.zero_grad()
        units_s, logits_s = states("student")
        logs_s, logs_t = logits_s.log_softmax(-1), logits_t.log_softmax(-1)
        kl = functional.kl_div(logs_s, logs_t, log_target=True, reduction="none").sum(-1).mean()
        (kl + DEFAULT_HIDDEN_WEIGHT * (units_t - units_s).pow(2).sum(-1).mean()).backward()
        return finish(optimizer.step())

    def answer():
        made = []
        with torch.inference_mode():
            for start in range(0, len(prompts), _ROWS.value):
                ids = prompts[start : start + _ROWS.value]
                options = {"max_new_tokens": _NEW.value, "min_new_tokens": _NEW.value, "do_sample": False}
                made.append(student.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options))
        return finish(made)

    return {"generation": answer, "teacher's pass": teacher, "update": update}


def timed(work: Callable[[], Any]) -> float:
    """Returns the seconds of a call."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def main(argv: list[str]) -> None:
    """Measures both and prints their times and ratios."""
    del argv
    problem = load_problem()
    ours, theirs = our_work(problem), their_work(problem)
    rows = []
    for name in _PARTS.value:
        timed(ours[name]), timed(theirs[name])
        pairs = [(timed(ours[name]), timed(theirs[name])) for _ in range(_REPEATS.value)]
        mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(other / mine for mine, other in pairs)
        rows.append([name, mine, other, statistics.median(ratios), ratios[0], ratios[-1]])
    print(
        f"{_MODEL.value}: {_PROMPTS.value} prompts of {_PROMPT.value} tokens, {_NEW.value} new ones, {_ROWS.value} at "
        f"once; {_BATCH.value} rows of {_PROMPT.value} + {_RESPONSE.value} tokens behind a rule of {_RULE.value}"
    )
    show_table(["part", "rdjax, s", "transformers and peft, s", "ratio", "lowest", "highest"], rows)
    names = ("part", "rdjax_seconds", "transformers_seconds", "ratio", "lowest_ratio", "highest_ratio")
    write_figures(_OUT.value, {"parts": [dict(zip(names, row, strict=True)) for row in rows]})


if __name__ == "__main__":
    app.run(main)
