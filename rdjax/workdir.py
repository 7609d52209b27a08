"""A run's folder: who owns it, and what stands in config.json."""

import importlib.metadata
import json
import pathlib
import platform
import shlex
import sys
from typing import Any

import jax
from ml_collections import config_dict

from rdjax.config import differences, plain
from rdjax.errors import UserError

RECORD = "config.json"
PACKAGES = ("rdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_suffix(path.suffix + ".part")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file; UserError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: invalid JSON ({error.msg})") from None


def read_lines(path: pathlib.Path) -> list[Any]:
    """The objects of a JSON Lines file; none where it is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


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
            there = json.loads(record.read_text())["config"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f"--workdir: {record} is not a run's config; take another folder") from None
        changed = differences(plain(config), there)
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
    if not record.exists():
        content = {
            "config": plain(config),
            "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
            "fingerprint": fingerprint,
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in PACKAGES},
            },
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }
        write_json(record, content)
    elif json.loads(record.read_text()).get("fingerprint") != fingerprint:
        raise UserError(f"--workdir: {workdir} holds a run on other data or weights; take another folder")
