"""A user's mistake, as opposed to a fault of the program."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what would be accepted."""


def exit_on_user_error(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Makes a command end with one line on standard error and status 2 on a `UserError`."""

    def wrapped(argv: list[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)

    return wrapped
