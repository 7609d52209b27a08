"""Writes the records of a workdir with their checksums, and reads them back by schema.

A record is what a run goes on from or what its results are read from: config.json, eval.json, sweep.json, the files of
inputs/, responses/ and predictions/. One that is not what was written, or has not the fields that it should have, ends
the command with a line that names the file.
"""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from rdjax.errors import UserError
from rdjax.parallel.processes import barrier, is_first
from rdjax.storage.files import json_text, lines_text, parse_json, read_text, replace_text
from rdjax.storage.sums import check_sum, expect_sum

Token = Annotated[int, msgspec.Meta(ge=0)]
Score = float | int | None


class Input(msgspec.Struct):
    """Describes a line of inputs/*.jsonl."""

    input: str


class Effects(msgspec.Struct):
    """Describes inputs/*_effects.json: what the rule changes in the answer to each input, nats per token."""

    inputs: list[str]
    effects: list[float]


class Response(msgspec.Struct):
    """Describes a line of responses/*.jsonl."""

    input: str
    gold: str
    response: str
    ids: list[Token]
    ended: bool
    confirmed: bool = False
    accepted: int = 0
    draws: int = 1


class Prediction(msgspec.Struct):
    """Describes a line of predictions/*.jsonl; `correct` is null where no judge looked at it."""

    input: str
    gold: str
    response: str
    ids: list[Token]
    ended: bool
    prompt: str
    correct: bool | None = None


class RunRecord(msgspec.Struct):
    """Describes config.json."""

    config: dict[str, Any]
    command: str = ""
    fingerprint: dict[str, str] | str | None = None
    versions: dict[str, str] = {}
    devices: str = ""


class Results(msgspec.Struct):
    """Describes eval.json."""

    splits: dict[str, dict[str, dict[str, Score]]]
    metric: dict[str, str] = {}
    hidden_distance: dict[str, dict[str, list[float]]] = {}
    rule: str = ""
    judge_errors: dict[str, dict[str, Any]] = {}
    flips: dict[str, dict[str, float]] = {}
    trained_on: dict[str, int] = {}


class Cell(Results, kw_only=True):
    """Describes a cell of sweep.json."""

    method: str
    k: int
    seed: int


class Failed(msgspec.Struct):
    """Describes a run of a sweep that ended with an error."""

    method: str
    k: int
    seed: int | str
    error: str


class Sweep(msgspec.Struct):
    """Describes sweep.json."""

    cells: list[Cell]
    failed: list[Failed] = []


def write_record(path: pathlib.Path, content: Any) -> None:
    """Writes indented JSON, and its checksum."""
    _write(path, json_text(content))


def write_records(path: pathlib.Path, records: Iterable[Any]) -> None:
    """Writes JSON Lines, one record per line, and their checksum."""
    _write(path, lines_text(records))


def copy_records(source: pathlib.Path, target: pathlib.Path, form: type) -> None:
    """Copies records with their checksum, for the first process alone; those that are damaged are left out."""
    with contextlib.suppress(UserError):
        _write_here(target, lines_text(read_records(source, form)))


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a text, by the first process."""
    if is_first():
        _write_here(path, text)
    barrier()  # the other processes may read the file next


def _write_here(path: pathlib.Path, text: str) -> None:
    """Writes a text; a program that is killed on the way leaves the old file or the new one, and both are accepted."""
    digest, rewritten = hashlib.sha256(text.encode()).hexdigest(), path.exists()
    expect_sum(path, digest, keep_old=rewritten)
    replace_text(path, text)
    if rewritten:
        expect_sum(path, digest, keep_old=False)


def check_inputs(path: pathlib.Path, records: Sequence[Mapping[str, Any]], inputs: Sequence[str]) -> None:
    """Checks that records are of these inputs, one for one.

    Raises:
      UserError: they are of others.
    """
    if [record["input"] for record in records] != list(inputs):
        raise UserError(f"{path}: is of other inputs than those of now; delete it, and the same command makes it again")


def read_record(path: pathlib.Path, form: type) -> dict[str, Any]:
    """Reads what `write_record` wrote.

    Raises:
      UserError: the file is not found, is damaged, or has not the form.
    """
    text = read_text(path, f"{path}: not found")
    check_sum(path)
    return of_form(parse_json(text, str(path)), form, str(path))


def read_records(path: pathlib.Path, form: type) -> list[dict[str, Any]]:
    """Reads what `write_records` wrote; a file that does not exist has no records.

    Raises:
      UserError: the file is damaged, or a line has not the form.
    """
    if not path.exists():
        return []
    text = read_text(path, f"{path}: not found")
    check_sum(path)
    lines = [line for line in text.split("\n") if line]
    return [
        of_form(parse_json(line, f"{path}, line {number}"), form, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
    ]


def of_form(
    content: Any, form: type, where: str, advice: str = "delete it, and the same command makes it again"
) -> Any:
    """Returns what was read if it has the form; UserError names the field that has not."""
    try:
        msgspec.convert(content, form)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {error}; {advice}") from None
    except RecursionError:
        raise UserError(f"{where}: JSON that is nested too deeply") from None
    return content
