"""Creates a run's folder with its config.json, or checks that an existing one belongs to the same run."""

import importlib.metadata
import pathlib
import platform
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import config_dict

from rdjax.config import differences, plain_config
from rdjax.errors import UserError
from rdjax.parallel.processes import exists_on_first, true_everywhere
from rdjax.storage.lock import FILES, lock_folder
from rdjax.storage.records import RunRecord, read_record, write_record
from rdjax.storage.sums import SUMS

RECORD = "config.json"
RESULTS = "eval.json"  # a run that has this file is finished
SWEEP = "sweep.json"
PREDICTIONS = "predictions"  # the folder of all answers, <split>.<system>.jsonl
LOG = "error.log"  # tracebacks of faults of the program
FROM_PYTHON = "rdjax.distill(...)"  # in the place of a command
# What a run that was killed may have left before its record.
STARTED = (*FILES, LOG, SUMS, f"{SUMS}.part", f"{RECORD}.part")
# Fields that may change on resume: no result depends on them but for rounding. Those that need less memory or time are
# among them, so that a run that has run out goes on with what it has.
FREE_FIELDS = ("mesh.", "plan.", "log.", "eval.gap_rows", "eval.batch_size", "model.remat")
FREE_FIELDS += ("train.accumulation", "train.teacher_signals", "train.checkpoint_every")
# What a fingerprint consists of, as messages name it.
FINGERPRINT_PARTS = {
    "model": "the model's weights or config",
    "tokenizer": "the tokenizer or its chat template",
    "adapter": "the starting adapter's weights or config",
    "student_adapter": "the weights or config of the adapter that the student starts from",
    "data": "the data",
    "judges": "the files of judges",
    "evaluated": "the adapters that are evaluated",
}
PACKAGES = ("rdjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")


def check_workdir(workdir: pathlib.Path, config: config_dict.ConfigDict) -> None:
    """Checks that a run with this config can start or resume in a folder; writes nothing.

    Raises:
      UserError: the path is a file, or the folder contains another run or other files.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir: {workdir} is a file; a folder is wanted")
    parent = next(parent for parent in workdir.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UserError(f"--workdir: {parent} is a file; a folder is wanted")
    record = workdir / RECORD
    if record.exists():
        recorded = _read_config(record)
        changed = [text for text in differences(plain_config(config), recorded) if not text.startswith(FREE_FIELDS)]
        if changed:
            raise UserError(
                f"--workdir: {workdir} holds a run with another config ({'; '.join(changed)}); take another folder"
            )
    elif workdir.exists() and any(path.name not in STARTED for path in workdir.iterdir()):
        raise UserError(f"--workdir: {workdir} holds files of something else; take an empty folder")


def open_workdir(
    workdir: pathlib.Path,
    config: config_dict.ConfigDict,
    module: str,
    fingerprint: Mapping[str, str] | None = None,
) -> None:
    """Creates the folder with its config.json, or checks that the run recorded there began with the same inputs.

    Args:
      module: the command, as `python -m` takes it.
      fingerprint: a hash of each input that the run reads, by its name in `FINGERPRINT_PARTS`.

    Raises:
      UserError: another run works in the folder, an input has changed since the run began, or the processes do not
        share the folder.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    lock_folder(workdir)
    check_workdir(workdir, config)  # once more: another command may have begun since
    record, fingerprint = workdir / RECORD, dict(fingerprint or {})
    if not exists_on_first(record):
        write_record(record, _new_record(config, module, fingerprint))
    began_with = _module_of(read_record(record, RunRecord).get("command", ""))
    if began_with and began_with != module:
        raise UserError(f"--workdir: {workdir} holds a run of {began_with}, not of {module}; take another folder")
    if not true_everywhere(record.exists()):
        raise UserError(f"--workdir: {workdir} is not the same folder for all processes; accepted: one that all see")
    _check_fingerprint(workdir, read_record(record, RunRecord).get("fingerprint"), fingerprint)


def _read_config(record: pathlib.Path) -> dict[str, Any]:
    """Returns the config that a config.json records; UserError where it is damaged, or of something else."""
    try:
        return read_record(record, RunRecord)["config"]
    except UserError:
        raise UserError(
            f"--workdir: {record} is not a run's config, or damaged; restore it from a copy, or take another folder"
        ) from None


def _module_of(command: str) -> str:
    """Returns the module of a recorded command, "" if it cannot be told."""
    if command.startswith("rdjax."):
        return command  # called from Python
    words = command.split()
    return words[2] if words[:2] == ["python", "-m"] and len(words) > 2 else ""


def _new_record(config: config_dict.ConfigDict, module: str, fingerprint: dict[str, str]) -> dict[str, Any]:
    """Returns the content of a new config.json."""
    return {
        "config": plain_config(config),
        "command": module if module == FROM_PYTHON else shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "fingerprint": fingerprint,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _check_fingerprint(workdir: pathlib.Path, recorded: Any, fingerprint: dict[str, str]) -> None:
    """Compares the inputs of a recorded run with those read now; UserError names the parts that differ."""
    if not isinstance(recorded, dict):  # a single hash, which cannot be computed any more
        print(f"note: {workdir} is from an earlier version of rdjax; its model and data are not compared with today's")
        return
    known = set(FINGERPRINT_PARTS) - ({"judges"} - recorded.keys())  # earlier versions did not look at these files
    changed = [part for part in FINGERPRINT_PARTS if part in known and recorded.get(part) != fingerprint.get(part)]
    if changed:
        names = ", ".join(FINGERPRINT_PARTS[part] for part in changed)
        raise UserError(
            f"--workdir: {workdir} holds a run on other inputs (changed since it began: {names}); take another folder"
        )
