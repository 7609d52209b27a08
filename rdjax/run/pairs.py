"""Makes the pairs that a run learns: from the rows' own outputs, or from the teacher's responses."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import datasets
from ml_collections import config_dict

from rdjax.data.pairs import Pair, Prompts, make_pair
from rdjax.data.shapes import in_batches
from rdjax.data.templates import Template
from rdjax.errors import UserError
from rdjax.evaluation.answers import Answer, answer, answer_record, answered_pairs, prompts_of, recorded_answers
from rdjax.evaluation.judges import TRAIN, Judge, make_judge
from rdjax.evaluation.scores import JudgeError, judge_all
from rdjax.generation.options import Decoding
from rdjax.parallel.processes import exists_on_first
from rdjax.run.experiment import Experiment
from rdjax.storage.metrics import progress_bar
from rdjax.storage.records import Response, check_inputs, read_records, write_records

MOST_NAMED = 20  # rows in a message


def gold_pairs(rows: datasets.Dataset, template: Template) -> list[Pair]:
    """Makes pairs of the rows with their own outputs."""
    return [make_pair(template, row) for row in rows]


def teacher_pairs(experiment: Experiment, rows: datasets.Dataset, path: pathlib.Path) -> list[Pair]:
    """Makes pairs of the rows with the responses of the base that reads the rule.

    A response that was cut off before its end of sequence teaches no end. Of several draws the first is taken that the
    judge of "train" accepts; without one, that equals the row's output. With `task.only_confirmed`, only rows are kept
    that have one. Responses to inputs that the model wrote may be empty, and are left out.

    Args:
      path: file of the responses; one that exists is read and not generated again.

    Raises:
      UserError: responses are empty, or none is confirmed; what was generated is kept.
    """
    prompts = prompts_of(experiment.model, rows, experiment.options)
    judge, task = experiment.judges.get(TRAIN), experiment.config.task
    chooser = judge or make_judge("exact_match", "")
    records = written_once(
        path, rows["input"], lambda: choose_responses(list(rows), draw_responses(experiment, prompts), chooser)
    )
    check_not_empty(rows, records, path)
    answered = not_empty(prompts, records, path)
    if not answered:
        raise UserError(f"{path}: all {len(records)} responses of the teacher are empty; nothing is left to train on")
    report_cut(path, records, experiment.options.decoding.max_new_tokens)
    if judge is not None or task.only_confirmed:
        report_confirmed(path, [record for _, record in answered], task)
    if task.only_confirmed:
        answered = [(prompt, record) for prompt, record in answered if record["confirmed"]]
        if not answered:
            raise UserError(f"{path}: none of the teacher's responses is confirmed; nothing is left to train on")
    return recorded_pairs(answered)


def retained_pairs(experiment: Experiment, rows: datasets.Dataset, path: pathlib.Path) -> list[Pair]:
    """Makes pairs of rows whose answers are to stay: the base's own responses, and a teacher that reads no rule.

    Args:
      path: file of the responses; one that exists is read and not generated again.
    """
    model, options = experiment.model, experiment.options
    rows = [{**row, "rule": ""} for row in rows]
    prompts = prompts_of(model, rows, options)

    def answer_rows() -> Iterable[Mapping[str, Any]]:
        with progress_bar(len(rows), 0, "answers to keep unchanged", "row") as bar:
            return map(answer_record, rows, answer(model, experiment.base, prompts, options, bar.update))

    records = written_once(path, [row["input"] for row in rows], answer_rows)
    report_cut(path, records, options.decoding.max_new_tokens)
    return recorded_pairs(not_empty(prompts, records, path))


def written_once(
    path: pathlib.Path, inputs: Sequence[str], make: Callable[[], Iterable[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Returns the responses to inputs that a file records; where there is none, they are made and written first.

    Raises:
      UserError: the file is of other inputs.
    """
    if not exists_on_first(path):
        write_records(path, make())
    records = read_records(path, Response)
    check_inputs(path, records, inputs)
    return records


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


def not_empty(
    prompts: Sequence[Prompts], records: Sequence[Mapping[str, Any]], path: pathlib.Path
) -> list[tuple[Prompts, Mapping[str, Any]]]:
    """Returns the prompts that have a response, with it, and prints how many have none."""
    answered = [(prompt, record) for prompt, record in zip(prompts, records, strict=True) if record["ids"]]
    if len(answered) < len(records):
        print(f"{path.stem}: {len(records) - len(answered)} of {len(records)} responses are empty and left out")
    return answered


def recorded_pairs(answered: Sequence[tuple[Prompts, Mapping[str, Any]]]) -> list[Pair]:
    """Makes pairs of prompts and the records of their responses."""
    prompts, records = [prompt for prompt, _ in answered], [record for _, record in answered]
    return answered_pairs(prompts, recorded_answers(records))


def report_cut(path: pathlib.Path, records: Sequence[Mapping[str, Any]], most: int) -> None:
    """Prints how many responses were cut before their end, which then is not learnt."""
    cut = sum(not record["ended"] for record in records)
    if cut:
        print(
            f"{path.stem}: {cut} of {len(records)} responses were cut at config.eval.max_new_tokens = {most}; "
            "the student does not learn where they end"
        )


def draw_responses(experiment: Experiment, prompts: Sequence[Prompts]) -> list[list[Answer]]:
    """Generates `task.draws` responses of the base with the rule to every prompt; returns those of each prompt."""
    config, draws = experiment.config, experiment.config.task.draws
    options = experiment.options
    options = dataclasses.replace(options, decoding=_teacher_decoding(config.task, options.decoding))
    with progress_bar(len(prompts) * draws, 0, "teacher's responses", "row") as bar:
        repeated = [prompt for prompt in prompts for _ in range(draws)]
        answers = answer(experiment.model, experiment.base_with_rule, repeated, options, bar.update, seed=config.seed)
    return in_batches(answers, draws)


def choose_responses(
    rows: Sequence[Mapping[str, str]], drawn: Sequence[Sequence[Answer]], judge: Judge
) -> list[dict[str, Any]]:
    """Returns one record a row: the first response that is not empty and that the judge accepts.

    Where it accepts none, the first that is not empty is taken, and where all are empty an empty one.

    Raises:
      UserError: the judge fails.
    """
    records = []
    for row, answers in zip(rows, drawn, strict=True):
        try:
            verdicts = judge_all(judge, TRAIN, "the teacher", [answer.text for answer in answers], [row] * len(answers))
        except JudgeError as error:
            raise UserError(str(error)) from error
        best = min(range(len(answers)), key=lambda number: (not answers[number].ids, not verdicts[number]))
        counts = {"confirmed": verdicts[best], "accepted": sum(verdicts), "draws": len(verdicts)}
        records.append(answer_record(row, answers[best]) | counts)
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
