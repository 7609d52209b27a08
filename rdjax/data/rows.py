"""Reads the rows of task files, and refuses faulty ones with the file, the row and the field."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rdjax.errors import UserError
from rdjax.storage.files import parse_json, read_text

Row = dict[str, str]
FIELDS = ("instruction", "input", "output")
ROLES = ("system", "user", "assistant")


def input_row(text: str, where: str, rule: str = "") -> Row:
    """Makes a row of an input alone, as a model wrote it or somebody types it."""
    return {"rule": rule, "instruction": "", "input": text, "output": "", "history": "", "where": where}


def student_input(row: Mapping[str, str]) -> tuple[str, str, str]:
    """Returns what the student reads of a row: instruction, earlier messages and input."""
    return row["instruction"], row["history"], row["input"]


def read_json_list(path: pathlib.Path) -> list[Row]:
    """Reads a JSON list of objects {instruction, input, output}.

    Raises:
      UserError: invalid JSON (with its line), no list, no rows, or a faulty row (with its number).
    """
    data = parse_json(read_text(path, f"{path}: not found"), str(path))
    if not isinstance(data, list):
        raise UserError(f"{path}: must hold a JSON list of rows")
    if not data:
        raise UserError(f"{path}: holds no rows")
    return [check_row(row, FIELDS, f"{path}, row {number}") for number, row in enumerate(data)]


def read_json_lines(path: pathlib.Path, missing: str) -> list[Row]:
    """Reads objects {input, output?, instruction?} or {messages}, one per line; adds `where`, skips blank lines.

    Raises:
      UserError: no file (its message is `missing`), invalid JSON, a faulty row (each with its line), or no rows.
    """
    rows = []
    # splitlines() would also split at U+2028 and others, which JSON allows inside strings.
    for number, line in enumerate(read_text(path, missing).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        rows.append({**check_sample(parse_json(line, where), where), "where": where})
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows


def check_row(row: Any, required: tuple[str, ...], where: str) -> Row:
    """Returns the row's `FIELDS`, with "" for those that are missing or null and not required.

    Raises:
      UserError: no object, a required field is missing or null, or a field is no string.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be an object with the fields {', '.join(required)}")
    for field in required:
        if row.get(field) is None:
            raise UserError(f"{where}: the field {field} is {'null' if field in row else 'missing'}")
    checked = {name: "" if row.get(name) is None else row[name] for name in FIELDS}
    for field, value in checked.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: the field {field} must be a string")
    return checked


def check_sample(row: Any, where: str) -> Row:
    """Returns the fields of a row of a user's file; a chat in `messages` gives input, output and history.

    The last answer of a chat is the output, and the user's message before it the input; `history` holds the messages
    before that, as JSON.

    Raises:
      UserError: as `check_row`; a field that is not understood, a chat that is none, or nothing to answer.
    """
    is_chat = isinstance(row, dict) and "messages" in row
    if isinstance(row, dict):
        accepted = ("messages",) if is_chat else FIELDS
        unknown = [name for name, value in row.items() if name not in accepted and value not in (None, "", [], {})]
        if unknown:
            raise UserError(
                f"{where}: fields that are not understood: {', '.join(unknown)}; accepted: {', '.join(accepted)}"
                + ("" if is_chat else ", or messages alone (a system message and earlier turns belong there)")
            )
        if is_chat:
            row = _read_chat(row["messages"], where)
    checked = check_row(row, ("input",), where)
    if not checked["input"].strip() and not checked["instruction"].strip():
        raise UserError(f"{where}: the {'last message of the user' if is_chat else 'field input'} is empty")
    return {**checked, "history": row["history"] if is_chat else ""}


def _read_chat(messages: Any, where: str) -> Row:
    """Returns input, output and history of a chat in the form of the OpenAI API."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f'{where}: messages must be a list of {{"role": ..., "content": ...}}')
    turns = [{"role": message.get("role"), "content": _message_text(message, where)} for message in messages]
    roles = [turn["role"] for turn in turns]
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise UserError(f"{where}: messages has the role {unknown[0]!r}; accepted: {', '.join(ROLES)}")
    output = turns.pop()["content"] if roles[-1:] == ["assistant"] else ""
    if not turns or turns[-1]["role"] != "user":
        raise UserError(f"{where}: messages must end with a user's message, or with one and the answer to it")
    text = turns.pop()["content"]
    return {"input": text, "output": output, "history": json.dumps(turns, ensure_ascii=False) if turns else ""}


def _message_text(message: dict[str, Any], where: str) -> str:
    """Returns the text of a message, whose content is a string or a list of parts."""
    further = [
        name for name, value in message.items() if name not in ("role", "content") and value not in (None, "", [], {})
    ]
    content = message.get("content")
    if further:
        raise UserError(f"{where}: messages has {further[0]}, which is not understood; accepted: role and content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text") or "") for part in content)
    raise UserError(f"{where}: the content of a message must be a string, or a list of parts of the type text")
