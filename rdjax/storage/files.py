"""Reads and writes JSON and JSON Lines. Files are written completely or not at all, by the first process alone."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

from rdjax.errors import UserError
from rdjax.parallel.processes import barrier, is_first


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a temporary file and renames it, so that a reader never finds half of the text."""
    if is_first():
        temporary = path.with_suffix(path.suffix + ".part")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    barrier()  # the other processes may read the file next


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_lines(path: pathlib.Path, records: Iterable[Any]) -> None:
    """Writes JSON Lines, one record per line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: the file is not valid JSON; names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from None


def read_json_object(path: pathlib.Path, missing: str) -> dict[str, Any]:
    """Reads a JSON file that a user brings.

    Raises:
      UserError: the file is not found (its message is `missing`), is not valid JSON, or holds no object.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(missing) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return content


def read_lines(path: pathlib.Path) -> list[Any]:
    """Reads the records of a JSON Lines file; a file that does not exist has none."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
