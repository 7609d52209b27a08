"""Runs commands in the process of the tests, as a user would in a shell; helpers of the tests of whole commands."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import config_dict

import rdjax
from configs.sweeps import arithmetic
from rdjax import sweep
from rdjax.run import cli

ROOT = pathlib.Path(rdjax.__file__).parent.parent
SMALL_SWEEP = {
    "sweep.methods": ("rule_distill_base", "tune"),
    "sweep.ks": (2, 5),
    "sweep.seeds": (0, 7),
    "sweep.updates": 3,
    "sweep.settings": {"tune": {"method": "inst_tune_without_rule", "lora": {"dropout": 0.0}}},
    "task.generated.test_rows": 3,
    "lora.rank": 2,
    "lora.dropout": 0.2,
    "optimizer.warmup_steps": 1,
    "train.valid_every": 1,
    "eval.max_new_tokens": 2,
    "eval.batch_size": 4,
    "eval.systems": ("base", "base_with_rule", "student"),
}


# A task of a few rows, for runs of a tiny model.
RULE = "Answer every question with the word yes."
ROWS = [{"input": f"{word}?", "output": "yes"} for word in ("one", "two", "six", "ten", "red")]


def checkout(folder: pathlib.Path) -> pathlib.Path:
    """Returns a folder that looks like a clone, and may be written to."""
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


class Failure(NamedTuple):
    """Describes how a command ended on a user's mistake."""

    status: int
    error: str  # the one line that begins with "error:"


def write_rows(path: pathlib.Path, rows: list[dict[str, str]]) -> None:
    """Writes JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_command(main: Callable[[list[str]], None], *arguments: str) -> int:
    """Runs a command and returns its exit status; the flags are afterwards what they were before."""
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["command", *arguments])
        flags.FLAGS.unparse_flags()
        cli.run(main)
    return ended.value.code or 0


def run_in(arguments: list[str], cwd: pathlib.Path) -> str:
    """Runs a program in a folder as a user does and returns what it prints; it must succeed.

    Compiled programs are kept for the next programs in this folder.
    """
    cache = {"JAX_ENABLE_COMPILATION_CACHE": "true", "XDG_CACHE_HOME": str(cwd / ".cache")}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **cache}
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def run_to_error(main: Callable[[list[str]], None], *arguments: str, capfd) -> Failure:
    """Runs a command that ends with one line of error and no traceback."""
    status = run_command(main, *arguments)
    lines = capfd.readouterr().err.splitlines()
    assert not [line for line in lines if "Traceback" in line]
    errors = [line for line in lines if line.startswith("error:")]
    assert len(errors) == 1, lines
    return Failure(status, errors[0])


def known(scores: dict[str, float | None]) -> dict[str, float]:
    """Returns the scores that a split has: retain has no gap closed."""
    return {name: value for name, value in scores.items() if value is not None}


def small_sweep(model: pathlib.Path, **changes) -> config_dict.ConfigDict:
    """Returns the config of a sweep that takes seconds; `changes` by path, dots as in "train.epochs"."""
    config = arithmetic.get_config()
    for path, value in (SMALL_SWEEP | changes).items():
        section = config
        *sections, name = path.split(".")
        for part in sections:
            section = section[part]
        if isinstance(value, dict):
            section[name].update(value)
        else:
            section[name] = value
    config.model.path = str(model)
    return config


def run_sweep(config: config_dict.ConfigDict, workdir: pathlib.Path, folder: pathlib.Path) -> int:
    """Runs `rdjax.sweep` on a config, which is written to `folder`, and returns its exit status."""
    path = folder / "sweep_config.py"
    path.write_text(
        "import json\nfrom ml_collections import config_dict\n\n\ndef get_config():\n"
        f"    return config_dict.ConfigDict(json.loads({config.to_json()!r}), convert_dict=True)\n"
    )
    return run_command(sweep.main, f"--config={path}", f"--workdir={workdir}")
