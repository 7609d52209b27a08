"""Reads the rows of task files, and refuses faulty ones with the file, the row and the field."""

import json
import pathlib
from typing import Any

from rdjax.errors import UserError

Row = dict[str, str]
FIELDS = ("instruction", "input", "output")


def read_text(path: pathlib.Path, missing: str) -> str:
    """Reads a UTF-8 file.

    Raises:
      UserError: the file is not found (its message is `missing`), or it is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(missing) from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None


def read_json_list(path: pathlib.Path) -> list[Row]:
    """Reads a JSON list of objects {instruction, input, output}.

    Raises:
      UserError: invalid JSON (with its line), no list, no rows, or a faulty row (with its number).
    """
    try:
        data = json.loads(read_text(path, f"{path}: not found"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from None
    if not isinstance(data, list):
        raise UserError(f"{path}: must hold a JSON list of rows")
    if not data:
        raise UserError(f"{path}: holds no rows")
    return [check_row(row, FIELDS, f"{path}, row {number}") for number, row in enumerate(data)]


def read_json_lines(path: pathlib.Path, missing: str) -> list[Row]:
    """Reads objects {input, output?, instruction?}, one JSON object per line; adds `where`, skips blank lines.

    Raises:
      UserError: no file (its message is `missing`), invalid JSON, a faulty row (each with its line), or no rows.
    """
    rows = []
    # splitlines() would also split at U+2028 and others, which JSON allows inside strings.
    for number, line in enumerate(read_text(path, missing).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: invalid JSON ({error.msg})") from None
        rows.append({**check_row(row, ("input",), where), "where": where})
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows


def check_row(row: Any, required: tuple[str, ...], where: str) -> Row:
    """Returns the row's `FIELDS`, with "" for those that are missing or null and not required.

    Raises:
      UserError: no object, a required field is missing, or a field is no string.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be an object with the fields {', '.join(required)}")
    for field in required:
        if field not in row:
            raise UserError(f"{where}: the field {field} is missing")
    checked = {name: "" if row.get(name) is None else row[name] for name in FIELDS}
    for field, value in checked.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: the field {field} must be a string")
    return checked
