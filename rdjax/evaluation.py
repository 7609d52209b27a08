"""Evaluation: what each system answers, how often it is right, and how much of the rule's gap is closed."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdjax.config import RETAIN
from rdjax.data.batches import (
    Batch,
    Shape,
    Side,
    Slots,
    batch_shape,
    coarsened,
    collate,
    in_batches,
    pair_prefixes,
)
from rdjax.data.pairs import Pair, Prompts, make_prompts
from rdjax.distill.losses import hidden_distance, sum_in_chunks
from rdjax.distill.step import logit_loss
from rdjax.distill.teacher import Signals, read_side
from rdjax.errors import UserError
from rdjax.files import read_lines, write_lines
from rdjax.generation import Decoding, generate
from rdjax.judges import Judge
from rdjax.mesh import place_prefix, put, row_multiple, rows_sharding
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter, effective
from rdjax.processes import there

# Nats a token. Below this the rule in context changes next to nothing and there is nothing to distil.
GAP_NEAR_ZERO = 0.01

FORGOTTEN = "retain, answered by the base without the rule"

GAP_SLOTS = Slots(variant="ours", hidden_positions="shared", reduction="token")


@dataclasses.dataclass(frozen=True)
class System:
    """A way to answer: the base with an adapter, prompted with the rule or without."""

    adapter: Adapter
    with_rule: bool


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """How to answer: prompt template, length limit, choice of tokens, rows a batch, and the scale of all adapters."""

    template: str
    max_length: int
    decoding: Decoding
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
        length = max(len(prompts.teacher_ids), len(prompts.student_ids)) + options.decoding.max_new_tokens
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
    seed: int = 0,
) -> Answers:
    """What a system answers to each prompt."""
    ids = [prompt.teacher_ids if system.with_rule else prompt.student_ids for prompt in prompts]
    made = generate(
        model,
        system.adapter,
        options.scale,
        ids,
        options.decoding,
        options.batch_size,
        seed,
        on_batch,
    )
    texts = model.tokenizer.batch_decode([new for new, _ in made], skip_special_tokens=True)
    return Answers([new for new, _ in made], [ended for _, ended in made], texts)


class Divergence(NamedTuple):
    """How far a system is from a reference.

    Attributes:
      kl: E KL(reference || system), nats a token.
      hidden_L: mean ||u_t - u_s||^2 of the normalised inputs of every block, over the shared positions.
    """

    kl: float
    hidden_L: list[float]


@functools.partial(jax.jit, static_argnames=("graph",))
def _read(base, adapter: Adapter, side: Side, prefix_C: jax.Array | None, *, graph) -> Signals:
    return read_side(graph, base, adapter, side, lead_C=prefix_C)


@functools.partial(jax.jit, static_argnames=("graph",))
def _compare(base, reference: Signals, system: Signals, batch: Batch, *, graph) -> tuple[jax.Array, jax.Array]:
    """Sums over the batch: of the KL divergence [], and of the hidden distance of every layer [L]."""
    head_DV = nnx.merge(graph, base).head()
    kl = sum_in_chunks(logit_loss("kl", 1.0), system.final_BPD, head_DV, (reference.final_BPD, batch.weight_BP))
    distance_LBQ = hidden_distance(reference.inputs_LBQD, system.inputs_LBQD)
    return kl, jnp.sum(distance_LBQ * batch.hidden_weight_BQ, axis=(1, 2))


def answered_pairs(prompts: Sequence[Prompts], responses: Answers) -> list[Pair]:
    """Prompts with the responses given to them."""
    triples = zip(prompts, responses.ids, responses.ended, strict=True)
    return [Pair(prompt, tuple(ids), ended) for prompt, ids, ended in triples]


def gap_shapes(groups: Mapping[str, Sequence[Pair]], options: EvalOptions, rows: int) -> dict[str, Shape]:
    """The shape in which each group of pairs is compared; groups with prefixes of the same lengths share it.

    Shapes are coarse, so that the seeds of a sweep share programs.
    """
    prefixes = {name: pair_prefixes(pairs, GAP_SLOTS) for name, pairs in groups.items()}
    shapes = {}
    for prefix in set(prefixes.values()):
        batches = [
            batch
            for name, pairs in groups.items()
            if prefixes[name] == prefix
            for batch in in_batches(pairs, options.batch_size)
        ]
        shapes[prefix] = coarsened(batch_shape(batches, rows, GAP_SLOTS, prefix))
    return {name: shapes[prefix] for name, prefix in prefixes.items()}


def divergence(
    model: LanguageModel,
    reference: System,
    systems: Mapping[str, System],
    pairs: Sequence[Pair],
    shape: Shape,
    options: EvalOptions,
) -> dict[str, Divergence]:
    """How far each system is from the reference, teacher-forced on the reference's responses.

    Args:
      pairs: prompts with these responses.
      shape: of `gap_shapes`.
    """
    rows = row_multiple(model.mesh)
    first = pairs[0].prompts
    sides = (first.student_ids, shape.student), (first.teacher_ids, shape.teacher)
    prefixes = [place_prefix(ids, extent.prefix, model.mesh) for ids, extent in sides]
    kls, hidden = dict.fromkeys(systems, 0.0), dict.fromkeys(systems, 0.0)
    tokens = positions = 0.0
    for part in in_batches(pairs, options.batch_size):
        batch = collate(part, rows, shape, GAP_SLOTS, model.eos_ids[0])
        tokens += float(batch.weight_BP.sum())
        positions += float(batch.hidden_weight_BQ.sum())
        batch = put(batch, rows_sharding(model.mesh))

        def read(system: System, batch: Batch = batch) -> Signals:
            side = batch.teacher if system.with_rule else batch.student
            scaled = effective(system.adapter, options.scale)
            return _read(model.base, scaled, side, prefixes[system.with_rule], graph=model.graph)

        wanted = read(reference)
        for name, system in systems.items():
            same = system.adapter is reference.adapter and system.with_rule == reference.with_rule
            shown = wanted if same else read(system)
            kl, hidden_L = _compare(model.base, wanted, shown, batch, graph=model.graph)
            kls[name] += float(kl)
            hidden[name] += np.asarray(hidden_L, np.float64)
    return {name: Divergence(kls[name] / tokens, (hidden[name] / positions).tolist()) for name in systems}


def gap_to_close(model: LanguageModel, start: Adapter, prompts: Sequence[Prompts], options: EvalOptions) -> float:
    """E KL(base with rule || base), nats a token: what the rule in context changes, before any training."""
    reference = System(start, with_rule=True)
    pairs = answered_pairs(prompts, answer(model, reference, prompts, options))
    base = {"base": System(start, with_rule=False)}
    shape = gap_shapes({"gap": pairs}, options, row_multiple(model.mesh))["gap"]
    return divergence(model, reference, base, pairs, shape, options)["base"].kl


class JudgeError(Exception):
    """A judge failed; the predictions are kept, so the same command goes on from there."""


def evaluate(
    model: LanguageModel,
    splits: Mapping[str, datasets.Dataset],
    systems: Mapping[str, System],
    start: Adapter,
    options: EvalOptions,
    judges: Mapping[str, Judge],
    folder: pathlib.Path,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Scores every system on every split and writes `<folder>/<split>.<system>.jsonl`; those there are not made again.

    Args:
      start: the adapter that teacher and student started from; "base" everywhere means the base with it.
      judges: of the splits that have one.

    Returns:
      {"splits": {split: {system: {metric: value, "n": rows, "mean_response_tokens": x, "gap_closed": x or None}}},
      "hidden_distance": {split: {system: [of every block]}}}; `kl` is the divergence from the rule-conditioned base in
      nats a token, `gap_closed` 1 - kl / kl of the base, and on the retain split `kl_from_base` the divergence of what
      reads no rule from the base without the rule: what was forgotten.

    Raises:
      JudgeError: a judge failed; all predictions are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reference, base = System(start, with_rule=True), System(start, with_rule=False)
    made: dict[str, dict[str, Answers]] = {}
    prompts = {split: prompts_of(model, rows, options) for split, rows in splits.items()}
    for split, rows in splits.items():
        made[split] = {}
        for name, system in systems.items():
            path = folder / f"{split}.{name}.jsonl"
            if there(path):
                made[split][name] = _read_predictions(path)
                on_batch(len(rows))
                continue
            made[split][name] = answer(model, system, prompts[split], options, on_batch)
            _write_predictions(path, rows, prompts[split], system, made[split][name])
    results: dict[str, Any] = {"splits": {}, "hidden_distance": {}}
    pairs = {}
    for split in splits:
        ruled = made[split].get("base_with_rule") or answer(model, reference, prompts[split], options)
        pairs[split] = answered_pairs(prompts[split], ruled)
    if RETAIN in splits:
        plain = made[RETAIN].get("base") or answer(model, base, prompts[RETAIN], options)
        pairs[FORGOTTEN] = answered_pairs(prompts[RETAIN], plain)
    shapes = gap_shapes(pairs, options, row_multiple(model.mesh))
    for split, rows in splits.items():
        compared = {"base": base, **systems}
        far = divergence(model, reference, compared, pairs[split], shapes[split], options)
        scores = results["splits"][split] = {}
        forgotten = {}
        if split == RETAIN:
            unruled = {name: system for name, system in systems.items() if not system.with_rule}
            forgotten = divergence(model, base, unruled, pairs[FORGOTTEN], shapes[FORGOTTEN], options)
        for name, answered in made[split].items():
            scores[name] = {}
            if split in judges:
                verdicts = judge_all(judges[split], split, name, answered.texts, list(rows["output"]))
                scores[name][judges[split].metric] = float(np.mean(verdicts))
                path = folder / f"{split}.{name}.jsonl"
                _write_predictions(path, rows, prompts[split], systems[name], answered, verdicts)
            gap = far["base"].kl
            scores[name] |= {
                "gap_closed": 1 - far[name].kl / gap if gap > GAP_NEAR_ZERO else None,
                "kl": far[name].kl,
                "n": len(rows),
                "mean_response_tokens": float(np.mean([len(ids) for ids in answered.ids])),
            }
            if name in forgotten:
                scores[name]["kl_from_base"] = forgotten[name].kl
        results["hidden_distance"][split] = {name: far[name].hidden_L for name in compared}
    return results


def judge_all(judge: Judge, split: str, system: str, texts: Sequence[str], golds: Sequence[str]) -> list[bool]:
    """The judge's verdicts; JudgeError where it fails."""
    try:
        return judge.verdicts(texts, golds)
    except Exception as error:  # a judge may be any code: a classifier, a pattern, a user's own
        raise JudgeError(f"the judge {judge.name} failed on {split}, system {system}: {error}") from error


def _write_predictions(
    path: pathlib.Path,
    rows: datasets.Dataset,
    prompts: Sequence[Prompts],
    system: System,
    answered: Answers,
    verdicts: Sequence[bool] | None = None,
) -> None:
    """One line a row."""
    records = [
        {
            "input": row["input"],
            "gold": row["output"],
            "response": answered.texts[number],
            "ids": answered.ids[number],
            "ended": answered.ended[number],
            "correct": None if verdicts is None else verdicts[number],
            "prompt": prompts[number].teacher_text if system.with_rule else prompts[number].student_text,
        }
        for number, row in enumerate(rows)
    ]
    write_lines(path, records)


def _read_predictions(path: pathlib.Path) -> Answers:
    records = read_lines(path)
    return Answers(*([record[name] for record in records] for name in ("ids", "ended", "response")))


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
