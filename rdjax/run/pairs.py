"""Makes the pairs that a run learns: from the rows' own outputs, or from the teacher's responses."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
from ml_collections import config_dict

from rdjax.data.pairs import Pair, Prompts, make_pair
from rdjax.data.templates import Template
from rdjax.errors import UserError
from rdjax.evaluation.answers import Answers, EvalOptions, System, answer, prompts_of
from rdjax.evaluation.judges import TRAIN, Judge, make_judge
from rdjax.evaluation.scores import JudgeError, judge_all
from rdjax.generation.options import Decoding
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.processes import exists_on_first
from rdjax.storage.metrics import progress
from rdjax.storage.records import Response, check_inputs, read_records, write_records

MOST_NAMED = 20  # rows in a message


def gold_pairs(rows: datasets.Dataset, template: Template) -> list[Pair]:
    """Makes pairs of the rows with their own outputs."""
    return [make_pair(template, row) for row in rows]


def teacher_pairs(
    model: LanguageModel,
    rows: datasets.Dataset,
    start: Adapter,
    options: EvalOptions,
    config: config_dict.ConfigDict,
    path: pathlib.Path,
    judge: Judge | None = None,
) -> list[Pair]:
    """Makes pairs of the rows with the responses of the base that reads the rule.

    A response that was cut off before its end of sequence teaches no end. Of several draws the first is taken that the
    judge accepts. With `task.only_confirmed`, only rows are kept that have one.

    Args:
      start: the teacher's adapter.
      path: file of the responses; one that exists is read and not generated again.
      judge: of the responses; None: those count that equal the row's output.

    Raises:
      UserError: responses are empty, or none is confirmed; what was generated is kept.
    """
    prompts = prompts_of(model, rows, options)
    if not exists_on_first(path):
        drawn = draw_responses(model, prompts, System(start, with_rule=True), options, config)
        write_records(path, choose_responses(list(rows), drawn, judge or make_judge("exact_match", "")))
    records = read_records(path, Response)
    check_inputs(path, records, rows["input"])
    check_not_empty(rows, records, path)
    if judge is not None or config.task.only_confirmed:
        report_confirmed(path, [line for line in records if line["ids"]], config.task)
    if not config.task.only_confirmed:
        return answered(prompts, records)
    confirmed = [number for number, line in enumerate(records) if line["confirmed"]]
    pairs = answered([prompts[number] for number in confirmed], [records[number] for number in confirmed])
    if not pairs:
        raise UserError(f"{path}: none of the teacher's responses is confirmed; nothing is left to train on")
    return pairs


def check_not_empty(rows: datasets.Dataset, records: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Checks that there is a response to every row of the user's; those to inputs that the model wrote may be empty.

    Raises:
      UserError: names all rows whose response is empty.
    """
    written = str(path.parents[1] / "inputs")
    pairs = zip(rows["where"], records, strict=True)
    empty = [where for where, record in pairs if not record["ids"] and not where.startswith(written)]
    if empty:
        names = "; ".join(empty[:MOST_NAMED]) + (f" and {len(empty) - MOST_NAMED} more" if empty[MOST_NAMED:] else "")
        raise UserError(
            f"{len(empty)} of {len(records)} responses of the teacher are empty: {names}; "
            f"leave these rows out, or give them an output ({path} has all responses)"
        )


def write_answers(path: pathlib.Path, inputs: Iterable[str], golds: Iterable[str], answers: Answers) -> None:
    """Writes the answers to some inputs, one record each."""
    columns = zip(inputs, golds, answers.texts, answers.ids, answers.ended, strict=True)
    names = ("input", "gold", "response", "ids", "ended")
    write_records(path, (dict(zip(names, values, strict=True)) for values in columns))


def recorded_pairs(prompts: Sequence[Prompts], records: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Makes pairs of prompts and recorded responses, the empty ones too."""
    lines = zip(prompts, records, strict=True)
    return [Pair(prompt, tuple(line["ids"]), line["ended"]) for prompt, line in lines]


def answered(prompts: Sequence[Prompts], records: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Makes pairs of prompts and recorded responses; those to inputs that the model wrote may be empty: no pair."""
    return [pair for pair in recorded_pairs(prompts, records) if pair.response_ids]


def held_pairs(
    model: LanguageModel, rows: datasets.Dataset, start: Adapter, options: EvalOptions, path: pathlib.Path
) -> list[Pair]:
    """Makes pairs of rows whose answers are to stay: the base's own responses, and a teacher that reads no rule.

    Args:
      start: the base's adapter.
      path: file of the responses; one that exists is read and not generated again.
    """
    rows = [{**row, "rule": ""} for row in rows]
    prompts = prompts_of(model, rows, options)
    if not exists_on_first(path):
        answers = answer(model, System(start, with_rule=False), prompts, options)
        write_answers(path, (row["input"] for row in rows), (row["output"] for row in rows), answers)
    records = read_records(path, Response)
    check_inputs(path, records, [row["input"] for row in rows])
    return answered(prompts, records)


def draw_responses(
    model: LanguageModel,
    prompts: Sequence[Prompts],
    system: System,
    options: EvalOptions,
    config: config_dict.ConfigDict,
) -> list[Answers]:
    """Generates `task.draws` responses to every prompt; returns those of each prompt."""
    draws = config.task.draws
    options = dataclasses.replace(options, decoding=_teacher_decoding(config.task, options.decoding))
    with progress(len(prompts) * draws, 0, "teacher's responses", "row") as bar:
        repeated = [prompt for prompt in prompts for _ in range(draws)]
        answers = answer(model, system, repeated, options, bar.update, seed=config.seed)
    return [
        Answers(*(column[first : first + draws] for column in (answers.ids, answers.ended, answers.texts)))
        for first in range(0, len(repeated), draws)
    ]


def choose_responses(rows: Sequence[Mapping[str, str]], drawn: Sequence[Answers], judge: Judge) -> list[dict[str, Any]]:
    """Returns one record a row: the first of its responses that the judge accepts, else the first one.

    Raises:
      UserError: the judge fails.
    """
    records = []
    for row, answers in zip(rows, drawn, strict=True):
        try:
            verdicts = judge_all(judge, TRAIN, "the teacher", answers.texts, [row] * len(answers.texts))
        except JudgeError as error:
            raise UserError(str(error)) from error
        order = sorted(range(len(verdicts)), key=lambda number: (not answers.ids[number], not verdicts[number]))
        best = order[0]
        records.append(
            {
                "input": row["input"],
                "gold": row["output"],
                "response": answers.texts[best],
                "ids": answers.ids[best],
                "ended": answers.ended[best],
                "confirmed": verdicts[best],
                "accepted": sum(verdicts),
                "draws": len(verdicts),
            }
        )
    return records


def report_confirmed(path: pathlib.Path, records: Sequence[Mapping[str, Any]], task: config_dict.ConfigDict) -> None:
    """Prints how many of the teacher's responses were accepted."""
    accepted, draws = (sum(record[name] for record in records) for name in ("accepted", "draws"))
    confirmed = sum(record["confirmed"] for record in records)
    kept = ", which are kept" if task.only_confirmed else ""
    drawn = f" ({accepted} of {draws} draws)" if task.draws > 1 else ""
    print(f"{path.stem}: the teacher's own response is confirmed in {confirmed} of {len(records)} rows{drawn}{kept}")


def _teacher_decoding(task: config_dict.ConfigDict, decoding: Decoding) -> Decoding:
    """Returns how the teacher's responses are decoded: as in evaluation, or drawn where a temperature is set."""
    if not task.temperature:
        return decoding
    return dataclasses.replace(decoding, temperature=task.temperature, top_k=task.top_k, top_p=task.top_p, beams=1)
