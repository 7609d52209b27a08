"""Scores what each system answers: how often it is right, and how much of the rule's gap is closed."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from rdjax.data.pairs import Prompts
from rdjax.data.splits import is_retained
from rdjax.errors import describe
from rdjax.evaluation.answers import (
    Answer,
    EvalOptions,
    System,
    answer,
    answer_record,
    answered_pairs,
    prompts_of,
    recorded_answers,
)
from rdjax.evaluation.divergence import GAP_NEAR_ZERO, Divergence, divergence, gap_shapes
from rdjax.evaluation.judges import Judge
from rdjax.evaluation.results import GAP_CLOSED, KL_FROM_BASE, TEACHER_GAP_CLOSED, unjudged_metric
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.mesh import row_multiple
from rdjax.parallel.processes import exists_on_first
from rdjax.storage.metrics import progress_bar
from rdjax.storage.records import Prediction, check_inputs, read_records, write_records


class JudgeError(Exception):
    """Reports that a judge failed; the predictions are on disk, so that the same command can resume."""


def evaluate(
    model: LanguageModel,
    splits: Mapping[str, datasets.Dataset],
    systems: Mapping[str, System],
    start: Adapter,
    options: EvalOptions,
    judges: Mapping[str, Judge],
    folder: pathlib.Path,
    on_batch: Callable[[int], None] = lambda rows: None,
    teachers: Mapping[str, System] | None = None,
) -> dict[str, Any]:
    """Scores every system on every split.

    Args:
      start: the adapter that teacher and student started from; "base" everywhere means the base with it.
      judges: of the splits that have one.
      folder: gets the answers as `<split>.<system>.jsonl`; those that exist are read and not generated again.
      on_batch: called with the number of rows answered since its last call.
      teachers: by system, the teacher that it was distilled from, if that is not the base with the rule.

    Returns:
      {"splits": {split: {system: {metric: value, "n": rows, "mean_response_tokens": x, "gap_closed": x or None}}},
      "metric": {split: metric}, "hidden_distance": {split: {system: [of every block]}}}, the base always among the
      systems of the last; `kl` is the divergence from the rule-conditioned base in nats per token and `gap_closed`
      1 - kl / kl of the base. Systems with another teacher have `gap_closed_to_teacher` too, against that one. On a
      retained split `gap_closed` is None, and `kl_from_base` is the divergence of a system without the rule from the
      base without it: what was forgotten.

    Raises:
      JudgeError: a judge failed; all predictions are written.
    """
    prompts = {split: prompts_of(model, rows, options) for split, rows in splits.items()}
    answers = {
        split: _answer_split(model, split, rows, prompts[split], systems, options, folder, on_batch)
        for split, rows in splits.items()
    }
    # Judges come first: one that fails ends the evaluation, and the rest of it takes long.
    scores = {
        split: _judge_split(judges.get(split), split, rows, prompts[split], systems, answers[split], folder)
        for split, rows in splits.items()
    }
    from_rule, from_base = _divergences(model, prompts, answers, systems, start, options)
    _add_scores(scores, answers, from_rule, from_base)
    for name, teacher in (teachers or {}).items():
        _add_teacher_scores(scores, name, teacher, systems, model, prompts, answers, start, options)
    hidden = {split: {name: measured.hidden_L for name, measured in part.items()} for split, part in from_rule.items()}
    metrics = {split: unjudged_metric(split) for split in splits}
    metrics |= {split: judges[split].metric for split in splits if split in judges}
    return {"splits": scores, "metric": metrics, "hidden_distance": hidden}


def _answer_split(
    model: LanguageModel,
    split: str,
    rows: datasets.Dataset,
    prompts: Sequence[Prompts],
    systems: Mapping[str, System],
    options: EvalOptions,
    folder: pathlib.Path,
    on_batch: Callable[[int], None],
) -> dict[str, list[Answer]]:
    """Generates and writes every system's answers to a split, or reads those that exist."""
    answers = {}
    for name, system in systems.items():
        path = folder / f"{split}.{name}.jsonl"
        if exists_on_first(path):
            answers[name] = _read_predictions(path, rows["input"])
            on_batch(len(rows))
        else:
            answers[name] = answer(model, system, prompts, options, on_batch)
            _write_predictions(path, rows, prompts, system, answers[name])
    return answers


def _divergences(
    model: LanguageModel,
    prompts: Mapping[str, Sequence[Prompts]],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
    systems: Mapping[str, System],
    start: Adapter,
    options: EvalOptions,
) -> tuple[dict[str, dict[str, Divergence]], dict[str, dict[str, Divergence]]]:
    """Measures how far the systems are from the base with the rule and, on retained splits, from the base without it.

    Returns:
      By split, of the base and of every system, from the base with the rule; and by retained split, of every system
      without the rule, from the base without it.
    """
    references = {"base_with_rule": System(start, with_rule=True), "base": System(start, with_rule=False)}
    needed = [("base_with_rule", split) for split in prompts] + [
        ("base", split) for split in prompts if is_retained(split)
    ]
    pairs = {}
    for name, split in needed:
        reference = answers[split].get(name) or answer(model, references[name], prompts[split], options)
        pairs[name, split] = answered_pairs(prompts[split], reference)
    shapes = gap_shapes(pairs, options, row_multiple(model.mesh))
    compared = {
        "base_with_rule": {"base": references["base"], **systems},
        "base": {name: system for name, system in systems.items() if not system.with_rule},
    }
    found: dict[str, dict[str, dict[str, Divergence]]] = {"base_with_rule": {}, "base": {}}
    with progress_bar(sum(map(len, pairs.values())), 0, "comparing predictions", "row") as bar:
        for name, split in needed:
            own = pairs[name, split]
            found[name][split] = divergence(model, references[name], compared[name], own, shapes[name, split], options)
            bar.update(len(own))
    return found["base_with_rule"], found["base"]


def _judge_split(
    judge: Judge | None,
    split: str,
    rows: datasets.Dataset,
    prompts: Sequence[Prompts],
    systems: Mapping[str, System],
    answers: Mapping[str, Sequence[Answer]],
    folder: pathlib.Path,
) -> dict[str, dict[str, Any]]:
    """Judges every system's answers to a split, and adds the verdicts to its file of predictions.

    Returns:
      {system: {metric: share of answers that count}}; without a judge, {system: {}}.
    """
    if judge is None:
        return {name: {} for name in systems}
    scores = {}
    for name, system in systems.items():
        verdicts = judge_all(judge, split, name, [answer.text for answer in answers[name]], list(rows))
        _write_predictions(folder / f"{split}.{name}.jsonl", rows, prompts, system, answers[name], verdicts)
        scores[name] = {judge.metric: float(np.mean(verdicts))}
    return scores


def _add_scores(
    scores: Mapping[str, Mapping[str, dict[str, Any]]],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
    from_rule: Mapping[str, Mapping[str, Divergence]],
    from_base: Mapping[str, Mapping[str, Divergence]],
) -> None:
    """Adds to the judges' scores those that need no judge: divergences, and the number and length of the answers."""
    for split, systems in scores.items():
        gap = from_rule[split]["base"].kl
        for name, system_scores in systems.items():
            kl, lengths = from_rule[split][name].kl, [len(answer.ids) for answer in answers[split][name]]
            system_scores[GAP_CLOSED] = None if is_retained(split) else _gap_closed(kl, gap)
            system_scores["kl"] = kl
            system_scores["n"] = len(lengths)
            system_scores["mean_response_tokens"] = float(np.mean(lengths))
    for split, systems in from_base.items():
        for name, divergence_from_base in systems.items():
            scores[split][name][KL_FROM_BASE] = divergence_from_base.kl


def _add_teacher_scores(
    scores: Mapping[str, Mapping[str, dict[str, Any]]],
    name: str,
    teacher: System,
    systems: Mapping[str, System],
    model: LanguageModel,
    prompts: Mapping[str, Sequence[Prompts]],
    answers: Mapping[str, Mapping[str, Sequence[Answer]]],
    start: Adapter,
    options: EvalOptions,
) -> None:
    """Adds how much of the gap between its own teacher and the base a system closes on the tests."""
    evaluated = [other for other, system in systems.items() if system.adapter is teacher.adapter and system.with_rule]
    pairs = {}
    for split in (split for split in prompts if not is_retained(split)):
        given = answers[split][evaluated[0]] if evaluated else answer(model, teacher, prompts[split], options)
        pairs[split] = answered_pairs(prompts[split], given)
    shapes = gap_shapes(pairs, options, row_multiple(model.mesh))
    compared = {"base": System(start, with_rule=False), name: systems[name]}
    for split in pairs:
        measured = divergence(model, teacher, compared, pairs[split], shapes[split], options)
        scores[split][name][TEACHER_GAP_CLOSED] = _gap_closed(measured[name].kl, measured["base"].kl)


def _gap_closed(kl: float, gap: float) -> float | None:
    """Returns the share of a gap that a system closes; None where there is next to none."""
    return 1 - kl / gap if gap > GAP_NEAR_ZERO else None


def flip_rates(folder: pathlib.Path, splits: Iterable[str]) -> dict[str, dict[str, float]]:
    """Returns how often the rule in context turns a wrong answer of the base into a right one, and the reverse.

    A rule's wording whose first number is high and whose second is low makes a good teacher (arXiv 2605.15239).

    Args:
      folder: of predictions; a split is left out if it has no judge, or not both systems.

    Returns:
      {split: {"wrong_to_right": share of all rows, "right_to_wrong": likewise}}.
    """
    rates = {}
    for split in splits:
        plain, ruled = (
            [record["correct"] for record in read_records(folder / f"{split}.{system}.jsonl", Prediction)]
            for system in ("base", "base_with_rule")
        )
        if plain and ruled and None not in plain + ruled:
            pairs = list(zip(plain, ruled, strict=True))
            rates[split] = {
                "wrong_to_right": pairs.count((False, True)) / len(pairs),
                "right_to_wrong": pairs.count((True, False)) / len(pairs),
            }
    return rates


def judge_all(
    judge: Judge, split: str, system: str, texts: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> list[bool]:
    """Returns the judge's verdicts on the responses to rows.

    Raises:
      JudgeError: the judge raised anything.
    """
    try:
        return judge.verdicts(texts, rows)
    except Exception as error:  # a judge may be any code: a classifier, a pattern, a user's own
        raise JudgeError(f"the judge {judge.name} failed on {split}, system {system}: {describe(error)}") from error


def _write_predictions(
    path: pathlib.Path,
    rows: datasets.Dataset,
    prompts: Sequence[Prompts],
    system: System,
    answers: Sequence[Answer],
    verdicts: Sequence[bool] | None = None,
) -> None:
    """Writes one line per row: input, gold output, response, verdict and prompt."""
    records = [
        answer_record(row, answer)
        | {
            "correct": None if verdicts is None else verdicts[number],
            "prompt": prompts[number].teacher_text if system.with_rule else prompts[number].student_text,
        }
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)  # with several rules a split is <rule>/<name>
    write_records(path, records)


def _read_predictions(path: pathlib.Path, inputs: Sequence[str]) -> list[Answer]:
    """Reads what `_write_predictions` wrote for these inputs."""
    records = read_records(path, Prediction)
    check_inputs(path, records, inputs)
    return recorded_answers(records)
