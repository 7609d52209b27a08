"""JSON and JSON Lines, in and out. What is written is there whole or not at all; of several processes one writes."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from rdjax.errors import UserError
from rdjax.parallel.processes import barrier, is_first


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its place and puts it there when it is whole."""
    if is_first():
        beside = path.with_suffix(path.suffix + ".part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    barrier()  # whoever reads it next finds it whole


def write_json(path: pathlib.Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_lines(path: pathlib.Path, records: Iterable[Any]) -> None:
    """Writes JSON Lines: one object a line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file; UserError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from None


def read_lines(path: pathlib.Path) -> list[Any]:
    """The objects of a JSON Lines file; none where it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
