"""A user's mistake, as opposed to a fault of the program."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, where, and what would be accepted."""
