"""Keeps the checksums of a folder's files in SHA256SUMS beside them, and tells which files are not what was written.

The form is that of sha256sum: `sha256sum -c SHA256SUMS` checks a folder without rdjax.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterable

from rdjax.errors import UserError
from rdjax.storage.files import read_text, replace_text

SUMS = "SHA256SUMS"
BLOCK_BYTES = 2**20
LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def file_sum(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_sums(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Records the checksums of the files of a folder; `names` are relative to it."""
    _write(folder, [(file_sum(folder / name), name) for name in names])


def expect_sum(path: pathlib.Path, digest: str, keep_old: bool) -> None:
    """Records the checksum that a file has or will have soon.

    Args:
      keep_old: the file may still be what it was, if the program is killed before it writes the new one.
    """
    lines = read_sums(path.parent)
    old = [(known, name) for known, name in lines if name == path.name and known != digest] if keep_old else []
    _write(path.parent, [line for line in lines if line[1] != path.name] + old + [(digest, path.name)])


def read_sums(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Returns the (checksum, name) of a folder's files; none if nothing is recorded.

    Raises:
      UserError: the record itself is damaged.
    """
    path = folder / SUMS
    if not path.exists():
        return []
    matches = [LINE.fullmatch(line) for line in read_text(path, f"{path}: not found").splitlines()]
    if not matches or None in matches:
        raise UserError(f"{path}: is damaged; delete it if you trust the files beside it")
    return [(match[1], match[2]) for match in matches]


def is_ours(folder: pathlib.Path, names: Iterable[str]) -> bool:
    """Tells whether a folder's record is in our form and has these files; one from elsewhere may be in another."""
    try:
        return {*names} <= {name for _, name in read_sums(folder)}
    except UserError:
        return False


def damaged_files(folder: pathlib.Path) -> list[str]:
    """Returns the names of recorded files that are missing or are not what was written; in the folder's order.

    A folder without a record, of an earlier version, has none.

    Raises:
      UserError: the record itself is damaged.
    """
    lines = read_sums(folder)
    names = dict.fromkeys(name for _, name in lines)
    return [name for name in names if not _is_one_of(folder / name, [known for known, own in lines if own == name])]


def describe_damage(folder: pathlib.Path) -> str:
    """Says what is damaged in a folder, the record itself too; "" where all is what was written."""
    try:
        return ", ".join(damaged_files(folder))
    except UserError:
        return SUMS


def check_sum(path: pathlib.Path) -> None:
    """Checks that a file is what was written; one that is not recorded, of an earlier version, is taken as it is.

    Raises:
      UserError: it is another; the message says what to do.
    """
    known = [digest for digest, name in read_sums(path.parent) if name == path.name]
    if known and not _is_one_of(path, known):
        raise UserError(
            f"{path}: is damaged (not what {SUMS} beside it says); delete it, and the same command makes it again"
        )


def _is_one_of(path: pathlib.Path, digests: list[str]) -> bool:
    """Tells whether a file is there and has one of these checksums."""
    try:
        return path.is_file() and file_sum(path) in digests
    except OSError:  # a name that no file can have, or a disk that does not read
        return False


def _write(folder: pathlib.Path, lines: Iterable[tuple[str, str]]) -> None:
    """Writes SHA256SUMS."""
    replace_text(folder / SUMS, "".join(f"{digest}  {name}\n" for digest, name in lines))
