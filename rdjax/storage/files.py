"""Reads and writes text and JSON. Files are written completely or not at all, by the first process alone."""

import json
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rdjax.errors import UserError, needing
from rdjax.parallel.processes import barrier, is_first

HALF = re.compile("[\ud800-\udfff]")  # what JSON can hold of a character, and no file and no tokenizer takes


def user_path(text: str | pathlib.Path) -> pathlib.Path:
    """Returns a path that a user gives, with the home folder for "~".

    Raises:
      UserError: there is no such home folder.
    """
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no home folder for ~ to stand for; give the whole path") from None


@contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path; what the block writes there takes the place of `path` at its end, whole and synced.

    The file can be read by those whom the umask lets read it, whatever the library says that writes it.

    Raises:
      OSError: it cannot be written; `path` is as before.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is only seen when the file is open, and then has no name
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a renaming last, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # object stores that are mounted as a file system cannot
        pass
    finally:
        os.close(descriptor)


@contextmanager
def making_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a new folder, which becomes `folder` at the end of the block: all of it or nothing."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _sync_folder(folder.parent)


def copy_folder(source: pathlib.Path, target: pathlib.Path, left_out: Sequence[str] = ()) -> None:
    """Copies the files of a folder into another, which can be written to whatever the modes of the first.

    Args:
      left_out: patterns of names.

    Raises:
      OSError: a file cannot be copied.
    """
    try:
        ignore = shutil.ignore_patterns(*left_out)
        shutil.copytree(source, target, ignore=ignore, copy_function=shutil.copyfile, dirs_exist_ok=True)
    except shutil.Error as error:  # a list of all files that failed
        _, path, reason = error.args[0][0]
        raise OSError(f"{path}: {reason}") from None
    for path in (target, *target.rglob("*")):
        if path.is_dir():
            path.chmod(path.stat().st_mode | stat.S_IRWXU)


def allocate(path: pathlib.Path, size: int) -> None:
    """Makes a file of `size` bytes that is to be mapped: where the disk is full this fails, and not the process later.

    Raises:
      OSError: there is no room.
    """
    with needing(size), path.open("wb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a text, whole and synced, by this process alone: unlike `write_text` it waits for no other."""
    content = text.encode()
    with needing(len(content)), replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text, so that a reader finds all of it or what was there before."""
    if is_first():
        replace_text(path, text)
    barrier()  # the other processes may read the file next


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes indented JSON."""
    write_text(path, json_text(content))


def write_lines(path: pathlib.Path, records: Iterable[Any]) -> None:
    """Writes JSON Lines, one record per line."""
    write_text(path, lines_text(records))


def json_text(content: Any) -> str:
    """Returns indented JSON."""
    return json.dumps(content, indent=2) + "\n"


def lines_text(records: Iterable[Any]) -> str:
    """Returns JSON Lines, one record per line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def parse_json(text: str, where: str) -> Any:
    """Parses JSON.

    Raises:
      UserError: it is invalid (with the line, from 1), nested too deeply, has a field twice or half of a character; its
        message begins with `where`.
    """
    try:
        content = json.loads(text, object_pairs_hook=_fields_once)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}: " if "\n" in text.strip() or error.lineno > 1 else ""
        raise UserError(f"{where}: {line}invalid JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{where}: JSON that is nested too deeply") from None
    except ValueError as error:  # a field that is there twice, or an integer of more digits than Python converts
        raise UserError(f"{where}: invalid JSON ({error})") from None
    if "\\ud" in text.lower():
        check_whole(json.dumps(content, ensure_ascii=False), where)
    return content


def check_whole(text: str, where: str) -> None:
    """Raises UserError, which begins with `where`, for a text that has half of a character."""
    if HALF.search(text):
        raise UserError(
            f"{where}: has half of a character (a lone surrogate, \\ud800 to \\udfff); accepted: whole ones"
        )


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the fields of a JSON object; raises ValueError where a name is there twice, of which Python takes one."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return fields


def check_regular(path: pathlib.Path) -> None:
    """Checks that what is to be read is a file: a FIFO or a device could keep a reader waiting for ever.

    Raises:
      UserError: it is there and is none.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no file; accepted: a regular file")


def read_text(path: pathlib.Path, missing: str) -> str:
    """Reads a UTF-8 file, with or without a byte order mark, which editors of Windows put in front.

    Raises:
      UserError: the file is not found (its message is `missing`), it is no UTF-8 text, or it cannot be read.
    """
    try:
        check_regular(path)
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(missing) from None
    except UnicodeDecodeError as error:
        hint = "; it looks like UTF-16: save it as UTF-8" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}){hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_json_object(path: pathlib.Path, missing: str) -> dict[str, Any]:
    """Reads a JSON file that a user brings.

    Raises:
      UserError: as `read_text` (the message of a file that is not found is `missing`) and `parse_json`, or it holds no
        object.
    """
    content = parse_json(read_text(path, missing), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return content
