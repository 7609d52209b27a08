"""Defines the error for a user's mistake, as opposed to a fault of the program, and describes any error."""


class UserError(Exception):
    """Reports bad input in one line: what is wrong, where, and what would be accepted."""


def describe(error: BaseException) -> str:
    """Returns the message of an error, with its type if it is not a `UserError`."""
    text = str(error).strip()
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
