"""Tries many faults, of which the tests try a few: `python -m tests.faults.long --kills=50`.

  --kills      SIGKILLs at random times upon runs and sweeps, which are then run again: the adapters are those of one
               that was never killed, bit for bit
  --damages    files of a run's folder that are cut, flipped, emptied, deleted or swapped
  --mutations  inputs and records that are changed in one to three places, over all readers
Prints what ended otherwise, and a line of totals. Exit status 1 where anything did.
"""

import collections
import contextlib
import io
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

import tqdm
from absl import app, flags

from rdjax import train
from rdjax.storage.lock import unlock_folder
from tests import tiny
from tests.commands import run_command
from tests.faults.damage import damage
from tests.faults.readers import readers
from tests.faults.runs import adapter_of, arguments, run_in_part, run_whole, write_task
from tests.faults.test_fuzz import make_folder, read_mutated

_KILLS = flags.DEFINE_integer("kills", 0, "Random SIGKILLs; every fifth upon a sweep.", lower_bound=0)
_DAMAGES = flags.DEFINE_integer("damages", 0, "Damaged files.", lower_bound=0)
_MUTATIONS = flags.DEFINE_integer("mutations", 0, "Mutated files, over all readers.", lower_bound=0)
_SEED = flags.DEFINE_integer("first_seed", 0, "Of the faults.", lower_bound=0)

QUICK = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
SWEEP = (
    "--config=configs/sweeps/arithmetic.py",
    "--config.sweep.methods=('rule_distill_base','inst_tune_without_rule')",
    "--config.sweep.ks=(4,)",
    "--config.sweep.seeds=(0,1)",
    "--config.sweep.updates=20",
    "--config.eval.systems=()",
)


def start(module: str, options: tuple[str, ...]) -> subprocess.Popen:
    """Starts a command."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | QUICK,
    )


def finish(module: str, options: tuple[str, ...]) -> tuple[int, str]:
    """Runs a command to its end; returns its status and what it printed of errors."""
    process = start(module, options)
    _, errors = process.communicate(timeout=600)
    return process.returncode, errors


def adapters(workdir: pathlib.Path) -> dict[str, bytes]:
    """Returns the adapters of a run or a sweep."""
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("adapter_model.safetensors")}


def try_kills(folder: pathlib.Path, count: int) -> int:
    """Kills runs and sweeps at random times, runs them to their end, and returns how many went wrong."""
    model = _tiny_model(folder)
    root = write_task(folder / "task")
    commands = {
        "run": ("rdjax.train", arguments(model, root, folder / "whole_run")),
        "sweep": ("rdjax.sweep", (*SWEEP, f"--workdir={folder / 'whole_sweep'}")),
    }
    seconds, expected = {}, {}
    for name, command in commands.items():
        began = time.monotonic()
        assert finish(*command)[0] == 0, name
        seconds[name], expected[name] = time.monotonic() - began, adapters(folder / f"whole_{name}")
    wrong = 0
    for number in tqdm.trange(count, desc="kills"):
        draws = random.Random(_SEED.value + number)
        name = "sweep" if number % 5 == 4 else "run"
        module, options = commands[name]
        workdir = folder / "killed"
        shutil.rmtree(workdir, ignore_errors=True)
        options = (*options[:-1], f"--workdir={workdir}") if name == "sweep" else arguments(model, root, workdir)
        for _ in range(draws.randint(1, 3)):
            process = start(module, options)
            time.sleep(draws.uniform(0.3, 1.0) * seconds[name])
            process.kill()
            process.communicate()
        status, errors = finish(module, options)
        if status or adapters(workdir) != expected[name]:
            wrong += 1
            print(f"kill {number} of a {name}: status {status} {errors.strip().splitlines()[-1:]}")
    return wrong


def try_damages(folder: pathlib.Path, count: int) -> int:
    """Damages files of an unfinished and of a finished run, runs them again, and returns how many went wrong."""
    model = _tiny_model(folder)
    root = write_task(folder / "task")
    run_in_part(model, root, folder / "part")
    run_whole(model, root, folder / "whole")
    wrong, endings = 0, collections.Counter()
    for number in tqdm.trange(count, desc="damages"):
        workdir = folder / "damaged"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(folder / ("part" if number % 2 else "whole"), workdir)
        done = damage(workdir, _SEED.value + number)
        # In this process, which has the programs already.
        with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()):
            status = run_command(train.main, *arguments(model, root, workdir))
        unlock_folder(workdir)
        errors = stderr.getvalue()
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        right = status == 0 and adapter_of(workdir) == adapter_of(folder / "whole")
        refused = status == 2 and len(lines) == 1 and "Traceback" not in errors
        endings["right" if right else "refused" if refused else "wrong"] += 1
        if not (right or refused):
            wrong += 1
            print(f"damage {number} ({done}): status {status} {errors.strip().splitlines()[-1:]}")
    print(f"damages: {dict(endings)}")
    return wrong


def try_mutations(folder: pathlib.Path, count: int) -> int:
    """Reads mutated files, and returns how many ended in anything but success and UserError."""
    sound = folder / "sound"
    sound.mkdir()
    known = readers(*make_folder(sound))
    wrong: collections.Counter[tuple[str, str, str]] = collections.Counter()
    names = list(known)
    for number in tqdm.trange(count, desc="mutations"):
        name = names[number % len(names)]
        try:
            read_mutated(known[name], sound, folder / "mutated", _SEED.value + number)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found = (name, type(error).__name__, f"{pathlib.Path(last.filename).name}:{last.lineno}")
            if not wrong[found]:
                print(f"mutation {number}: {found} {str(error)[:100]}")
            wrong[found] += 1
    return wrong.total()


def _tiny_model(folder: pathlib.Path) -> pathlib.Path:
    """Writes a tiny model of random weights."""
    path = folder / "model"
    path.mkdir()
    tiny.write_random_checkpoint(path, tiny.LLAMA2 | {"max_position_embeddings": 4096})
    return tiny.write_tokenizer(path)


def main(argv: list[str]) -> None:
    """Tries what the flags ask for."""
    del argv
    parts = ((try_kills, _KILLS.value), (try_damages, _DAMAGES.value), (try_mutations, _MUTATIONS.value))
    totals = []
    for attempt, count in parts:
        if count:
            with tempfile.TemporaryDirectory() as folder:
                totals.append((attempt.__name__.removeprefix("try_"), count, attempt(pathlib.Path(folder), count)))
    print("; ".join(f"{name}: {wrong} of {count} wrong" for name, count, wrong in totals))
    sys.exit(int(any(wrong for _, _, wrong in totals)))


if __name__ == "__main__":
    app.run(main)
