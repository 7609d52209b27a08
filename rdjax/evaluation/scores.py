"""Scores what each system answers: how often it is right, and how much of the rule's gap is closed."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from rdjax.config import RETAIN
from rdjax.data.pairs import Prompts
from rdjax.evaluation.answers import Answers, EvalOptions, System, answer, answered_pairs, prompts_of
from rdjax.evaluation.divergence import GAP_NEAR_ZERO, divergence, gap_shapes
from rdjax.evaluation.judges import Judge
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import row_multiple
from rdjax.parallel.processes import exists_on_first
from rdjax.storage.files import read_lines, write_lines

FORGOTTEN = "retain, answered by the base without the rule"


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
            if exists_on_first(path):
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
