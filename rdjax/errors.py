"""Defines the error for a user's mistake, as opposed to a fault of the program."""


class UserError(Exception):
    """Reports bad input in one line: what is wrong, where, and what would be accepted."""
