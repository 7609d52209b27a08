"""What every command shares: absl flags, and errors in one line with exit status 2."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from rdjax.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the command line and calls `main` with the positional arguments.

    Bad flags and `UserError` end with one line on standard error and exit status 2, without a traceback.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            positional = flags.FLAGS(argv)
            # ml_collections tells of a config file that is not there only when the config is first read.
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:
                flags.FLAGS.config.to_dict()
            return positional
        # ml_collections raises the built-in ones for an unknown field; a config file is a program and raises anything.
        except Exception as error:
            sys.exit(_fail(error))

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
        try:
            main(argv[1:])
        except UserError as error:
            sys.exit(_fail(error))

    app.run(guarded, flags_parser=parse)


def no_arguments(argv: list[str]) -> None:
    """Refuses positional arguments, which are most often flags that lack their dashes."""
    if argv:
        raise UserError(f"the argument {argv[0]!r} is not understood; accepted: --flag=value, --config.<field>=<value>")


def _fail(error: Exception) -> int:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2
