"""Evaluation: what each system answers, how often it is right, and how much of the rule's gap is closed."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import datasets
import jax
import jax.numpy as jnp
import numpy as np

from rdjax.data.batches import Batch, Side, Slots, batch_shape, collate, round_up
from rdjax.data.pairs import Pair, Prompts, make_prompts
from rdjax.distill.losses import kl_divergence
from rdjax.distill.teacher import logits, read_side
from rdjax.errors import UserError
from rdjax.generation import generate
from rdjax.judges import judge_of
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, effective
from rdjax.sharding import row_multiple, rows_sharding

# Nats a token. Below this the rule in context changes next to nothing and there is nothing to distil.
GAP_NEAR_ZERO = 0.01

GAP_SLOTS = Slots(variant="ours", hidden_positions="response", reduction="token")


@dataclasses.dataclass(frozen=True)
class System:
    """A way to answer: the base with an adapter, prompted with the rule or without."""

    adapter: Adapter
    with_rule: bool


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """How to answer: prompt template, length limits, rows a batch, and the scale of all adapters."""

    template: str
    max_length: int
    max_new_tokens: int
    batch_size: int
    scale: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """The responses of one system to the rows of a split."""

    ids: list[list[int]]
    ended: list[bool]
    texts: list[str]


def length_limit(model: LanguageModel, max_length: int) -> tuple[int, str]:
    """The tokens that a sequence may have, and what sets that limit."""
    limits = (max_length, "task.max_length"), (model.config.max_positions, "the model's max_position_embeddings")
    return min(limits)


def prompts_of(model: LanguageModel, rows: Iterable[Mapping[str, str]], options: EvalOptions) -> list[Prompts]:
    """Both prompts of every row; one that leaves no room for an answer is an error."""
    made = [make_prompts(options.template, model.tokenizer, row) for row in rows]
    limit, name = length_limit(model, options.max_length)
    for prompts in made:
        length = max(len(prompts.teacher_ids), len(prompts.student_ids)) + options.max_new_tokens
        if length > limit:
            raise UserError(
                f"{prompts.where}: prompt and eval.max_new_tokens take {length} tokens, over {name} = {limit}; "
                "nothing is cut: shorten the row or raise the limit"
            )
    return made


def answer(
    model: LanguageModel,
    system: System,
    prompts: Sequence[Prompts],
    options: EvalOptions,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Answers:
    """What a system answers to each prompt, greedily."""
    ids = [prompt.teacher_ids if system.with_rule else prompt.student_ids for prompt in prompts]
    made = generate(
        model, system.adapter, options.scale, ids, options.max_new_tokens, options.batch_size, on_batch=on_batch
    )
    texts = model.tokenizer.batch_decode([new for new, _ in made], skip_special_tokens=True)
    return Answers([new for new, _ in made], [ended for _, ended in made], texts)


@functools.partial(jax.jit, static_argnames=("graph",))
def _final(base, adapter: Adapter, side: Side, *, graph) -> jax.Array:
    """Final hidden states [B, P, D] at the prediction positions."""
    return read_side(graph, base, adapter, side._replace(aligned_BQ=None)).final_BPD


@functools.partial(jax.jit, static_argnames=("graph",))
def _kl_sum(base, reference_BPD: jax.Array, system_BPD: jax.Array, weight_BP: jax.Array, *, graph) -> jax.Array:
    reference_BPV, system_BPV = logits(graph, base, reference_BPD), logits(graph, base, system_BPD)
    return jnp.sum(kl_divergence(reference_BPV, system_BPV, 1.0) * weight_BP)


def divergence(
    model: LanguageModel,
    reference: Adapter,
    systems: Mapping[str, System],
    prompts: Sequence[Prompts],
    responses: Answers,
    options: EvalOptions,
) -> dict[str, float]:
    """E KL(reference with the rule || system) in nats a token, teacher-forced on the reference's responses."""
    triples = zip(prompts, responses.ids, responses.ended, strict=True)
    pairs = [Pair(prompt, tuple(ids), ended) for prompt, ids, ended in triples]
    rows = round_up(options.batch_size, row_multiple(model.mesh))
    shape = batch_shape(pairs, GAP_SLOTS)
    totals, tokens = dict.fromkeys(systems, 0.0), 0.0
    for start in range(0, len(pairs), rows):
        batch = collate(pairs[start : start + rows], rows, shape, GAP_SLOTS, model.tokenizer.eos_token_id)
        tokens += float(batch.weight_BP.sum())
        batch = jax.device_put(batch, rows_sharding(model.mesh))

        def final_BPD(system: System, batch: Batch = batch) -> jax.Array:
            side = batch.teacher if system.with_rule else batch.student
            return _final(model.base, effective(system.adapter, options.scale), side, graph=model.graph)

        reference_BPD = final_BPD(System(reference, with_rule=True))
        for name, system in systems.items():
            total = _kl_sum(model.base, reference_BPD, final_BPD(system), batch.weight_BP, graph=model.graph)
            totals[name] += float(total)
    return {name: total / tokens for name, total in totals.items()}


def gap_to_close(model: LanguageModel, start: Adapter, prompts: Sequence[Prompts], options: EvalOptions) -> float:
    """E KL(base with rule || base), nats a token: what the rule in context changes, before any training."""
    responses = answer(model, System(start, with_rule=True), prompts, options)
    base = {"base": System(start, with_rule=False)}
    return divergence(model, start, base, prompts, responses, options)["base"]


def evaluate(
    model: LanguageModel,
    splits: Mapping[str, datasets.Dataset],
    systems: Mapping[str, System],
    start: Adapter,
    options: EvalOptions,
    folder: pathlib.Path,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores every system on every split and writes `<folder>/<split>.<system>.jsonl`.

    Args:
      start: the adapter that teacher and student started from; "base" everywhere means the base with it.

    Returns:
      {split: {system: {metric: value, "n": rows, "mean_response_tokens": x, "gap_closed": x or None}}}; `kl` is the
      divergence from the rule-conditioned base in nats a token, `gap_closed` 1 - kl / kl of the base.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reference, base = System(start, with_rule=True), System(start, with_rule=False)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for split, rows in splits.items():
        prompts = prompts_of(model, rows, options)
        answers = {name: answer(model, system, prompts, options, on_batch) for name, system in systems.items()}
        if "base_with_rule" in answers:
            responses = answers["base_with_rule"]
        else:
            responses = answer(model, reference, prompts, options)
        kl = divergence(model, start, {"base": base, **systems}, prompts, responses, options)
        judge = judge_of(split, list(rows["output"]))
        results[split] = {}
        for name, answered in answers.items():
            verdicts = None if judge is None else list(map(judge, answered.texts, rows["output"]))
            scores = {} if verdicts is None else {judge.__name__: float(np.mean(verdicts))}
            closed = 1 - kl[name] / kl["base"] if kl["base"] > GAP_NEAR_ZERO else None
            results[split][name] = {
                **scores,
                "gap_closed": closed,
                "kl": kl[name],
                "n": len(rows),
                "mean_response_tokens": float(np.mean([len(ids) for ids in answered.ids])),
            }
            _write_predictions(
                folder / f"{split}.{name}.jsonl",
                rows,
                prompts,
                system_of=systems[name],
                answered=answered,
                verdicts=verdicts,
            )
    return results


def _write_predictions(path: pathlib.Path, rows, prompts, system_of: System, answered: Answers, verdicts) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            record = {
                "input": row["input"],
                "gold": row["output"],
                "response": answered.texts[number],
                "ended": answered.ended[number],
                "correct": None if verdicts is None else verdicts[number],
                "prompt": prompts[number].teacher_text if system_of.with_rule else prompts[number].student_text,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The scores as text: a line a system, for each split its metric and the share of the gap closed."""
    splits = list(results)
    systems = list(next(iter(results.values())))
    head = ["system"]
    for split in splits:
        metric = next(iter(results[split][systems[0]]))
        head += [f"{split} {metric}"] + ([f"{split} gap_closed"] if metric != "gap_closed" else [])
    lines = [head]
    for system in systems:
        line = [system]
        for split in splits:
            scores = results[split][system]
            metric = next(iter(scores))
            names = [metric] if metric == "gap_closed" else [metric, "gap_closed"]
            line += ["-" if scores[name] is None else f"{scores[name]:.2f}" for name in names]
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
