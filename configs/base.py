"""The defaults, from which every config starts: rdjax/defaults.py defines each field with a comment."""

from rdjax.defaults import get_config

__all__ = ["get_config"]
