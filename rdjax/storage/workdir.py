"""A run's folder: who owns it, and what stands in config.json."""

import importlib.metadata
import json
import pathlib
import platform
import shlex
import sys

import jax
from ml_collections import config_dict

from rdjax.config import differences, plain_config
from rdjax.errors import UserError
from rdjax.parallel.processes import exists_on_first, true_everywhere
from rdjax.storage.files import read_json, write_json

RECORD = "config.json"
# What a run may be continued with other values of: it says where it computes or what it shows beforehand, no result.
FREE = ("mesh.", "plan.", "eval.gap_rows")
PACKAGES = ("rdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")


def check_workdir(workdir: pathlib.Path, config: config_dict.ConfigDict) -> None:
    """Checks that a run of this config may work there; writes nothing.

    Raises:
      UserError: the path is a file, or the folder holds another run or other files.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir: {workdir} is a file; a folder is wanted")
    above = next(parent for parent in workdir.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"--workdir: {above} is a file; a folder is wanted")
    record = workdir / RECORD
    if record.exists():
        try:
            theirs = json.loads(record.read_text())["config"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f"--workdir: {record} is not a run's config; take another folder") from None
        changed = [text for text in differences(plain_config(config), theirs) if not text.startswith(FREE)]
        if changed:
            raise UserError(
                f"--workdir: {workdir} holds a run with another config ({'; '.join(changed)}); take another folder"
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"--workdir: {workdir} holds files of something else; take an empty folder")


def open_workdir(workdir: pathlib.Path, config: config_dict.ConfigDict, module: str, fingerprint: str = "") -> None:
    """Makes the folder with its config.json, or goes on in one that has it.

    Args:
      module: the command, as `python -m` takes it.
      fingerprint: of the data and weights that the run reads.

    Raises:
      UserError: the folder's run read other data or weights.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    record = workdir / RECORD
    if not exists_on_first(record):
        content = {
            "config": plain_config(config),
            "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
            "fingerprint": fingerprint,
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in PACKAGES},
            },
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }
        write_json(record, content)
    if not true_everywhere(record.exists()):
        raise UserError(f"--workdir: {workdir} is not the same folder for all processes; accepted: one that all see")
    if read_json(record).get("fingerprint") != fingerprint:
        raise UserError(f"--workdir: {workdir} holds a run on other data or weights; take another folder")
