"""Makes the pairs that a run learns: from the rows' own outputs, or from the teacher's responses."""

import dataclasses
import pathlib
from collections.abc import Sequence

import datasets
from ml_collections import config_dict

from rdjax.data.pairs import Pair, Prompts, make_pair
from rdjax.data.templates import Template
from rdjax.errors import UserError
from rdjax.evaluation.answers import EvalOptions, System, answer, prompts_of
from rdjax.evaluation.judges import exact_match
from rdjax.generation.options import Decoding
from rdjax.models.load import LanguageModel
from rdjax.models.lora import Adapter
from rdjax.parallel.processes import exists_on_first
from rdjax.storage.files import read_lines, write_lines


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
) -> list[Pair]:
    """Makes pairs of the rows with the responses of the base that reads the rule.

    A response that was cut off before its end of sequence teaches no end. With `task.only_confirmed`, only rows are
    kept whose gold output the teacher found.

    Args:
      start: the teacher's adapter.
      path: file of the responses; one that exists is read and not generated again.

    Raises:
      UserError: a response is empty, or none is confirmed.
    """
    prompts = prompts_of(model, rows, options)
    if not exists_on_first(path):
        _write_responses(model, rows, prompts, start, options, config, path)
    responses = read_lines(path)
    pairs = [Pair(prompt, tuple(line["ids"]), line["ended"]) for prompt, line in zip(prompts, responses, strict=True)]
    if not config.task.only_confirmed:
        return pairs
    confirmed = [
        pair for pair, line in zip(pairs, responses, strict=True) if exact_match(line["response"], line["gold"])
    ]
    print(
        f"{path.stem}: the teacher's own response is the gold output in {len(confirmed)} of {len(pairs)} rows, "
        "which are kept"
    )
    if not confirmed:
        raise UserError(
            f"{path}: the teacher answers none of the rows as their outputs do; nothing is left to train on"
        )
    return confirmed


def _write_responses(
    model: LanguageModel,
    rows: datasets.Dataset,
    prompts: Sequence[Prompts],
    start: Adapter,
    options: EvalOptions,
    config: config_dict.ConfigDict,
    path: pathlib.Path,
) -> None:
    """Generates the teacher's response to every row and writes them to `path`."""
    options = dataclasses.replace(options, decoding=_teacher_decoding(config.task, options.decoding))
    answers = answer(model, System(start, with_rule=True), prompts, options, seed=config.seed)
    for prompt, ids in zip(prompts, answers.ids, strict=True):
        if not ids:
            raise UserError(f"{prompt.where}: the teacher's own response is empty; leave this row out")
    columns = zip(rows, answers.ids, answers.ended, answers.texts, strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(
        path,
        (
            {"input": row["input"], "gold": row["output"], "response": text, "ids": ids, "ended": ended}
            for row, ids, ended, text in columns
        ),
    )


def _teacher_decoding(task: config_dict.ConfigDict, decoding: Decoding) -> Decoding:
    """Returns how the teacher's responses are decoded: as in evaluation, or drawn where a temperature is set."""
    if not task.temperature:
        return decoding
    return dataclasses.replace(decoding, temperature=task.temperature, top_k=task.top_k, top_p=task.top_p, beams=1)
