"""Defines the flags of the commands that work on an experiment: --config and --workdir."""

import pathlib

from absl import flags
from ml_collections import config_dict, config_flags

from rdjax.errors import UserError
from rdjax.storage.files import user_path

_CONFIG = config_flags.DEFINE_config_file("config", None, "A Python file of configs/, e.g. configs/quickstart.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of checkpoints and results.")


def config(example: str) -> config_dict.ConfigDict:
    """Returns the config of --config and its overrides; an error suggests `example` where the flag is missing."""
    if _CONFIG.value is None:
        raise UserError(f"--config is missing; e.g. --config={example}")
    return _CONFIG.value


def workdir() -> pathlib.Path:
    """Returns the folder that --workdir names, which need not exist."""
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; a folder for checkpoints and results")
    return user_path(_WORKDIR.value)
