"""Defines the error for a user's mistake, as opposed to a fault of the program, and describes any error."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Reports bad input in one line: what is wrong, where, and what would be accepted."""


NEEDED = "bytes to write: "  # begins a note on an error, followed by a number


@contextmanager
def needing(size: int) -> Iterator[None]:
    """Notes on an error of a `with` block how many bytes it was to write: a full disk is reported with this number."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{NEEDED}{size}")
        raise


def describe(error: BaseException) -> str:
    """Returns the message of an error, with its type if it is not a `UserError`."""
    text = str(error).strip()
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
