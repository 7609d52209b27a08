"""Several processes that run the same command, one a host: how they find each other, agree, and end together.

All see the same --workdir. The first one writes to it and prints; the others compute alike.
"""

import hashlib
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from absl import flags

# No stable module speaks between processes; this one is what JAX's own documentation names for it.
from jax.experimental import multihost_utils

from rdjax.errors import UserError

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes; which one, the environment tells: a TPU pod, SLURM, Open MPI."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Or explicitly: <host>:<port> of the first process,")
_PROCESSES = flags.DEFINE_integer("processes", None, "how many there are,", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "and which one this is, from 0.", lower_bound=0)
_CONNECT_SECONDS = flags.DEFINE_integer("connect_seconds", 300, "How long to wait for the others.", lower_bound=1)

# The exit status of a run that was told to stop: the same command goes on from there (EX_TEMPFAIL of sysexits.h).
EXIT_RERUN = 75

_told: list[int] = []  # the SIGTERMs that came to this one of several processes


def join_processes() -> None:
    """Joins the other processes, where the flags name some; silences all but the first.

    Raises:
      UserError: the flags do not fit each other, or the coordinator does not answer.
    """
    explicit = {"coordinator": _COORDINATOR.value, "processes": _PROCESSES.value, "process": _PROCESS.value}
    given = [name for name, value in explicit.items() if value is not None]
    if given and len(given) < len(explicit):
        missing = ", ".join(f"--{name}" for name in explicit if name not in given)
        raise UserError(f"--{given[0]} without {missing}; accepted: all three, or --distributed alone")
    if not given and not _DISTRIBUTED.value:
        return
    if given and explicit["process"] >= explicit["processes"]:
        raise UserError(
            f"--process = {explicit['process']} of --processes = {explicit['processes']}; they count from 0"
        )
    if given and _PROCESS.value:
        _await_coordinator()
    # JAX's own protocol for SIGTERM comes to one decision in a process's life; ours asks anew after every update.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            explicit["coordinator"],
            explicit["processes"],
            explicit["process"],
            local_device_ids=None if given else _gpus_of_the_node(),
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=_CONNECT_SECONDS.value,
        )
    except (RuntimeError, ValueError) as error:
        where = explicit["coordinator"] or "the coordinator that the environment names"
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"--coordinator: {where} and all processes did not meet within {_CONNECT_SECONDS.value} seconds ({said})"
        ) from None
    if not is_first():
        sys.stdout = pathlib.Path(os.devnull).open("w")  # noqa: SIM115 (open as long as the process lives)


def _gpus_of_the_node() -> list[int] | None:
    """All GPUs of a node on which SLURM runs one task; JAX would take one a task. None where that is not so."""
    alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if alone and gpus.isdigit() else None


def _await_coordinator() -> None:
    """Until the first process listens; JAX's own client would abort the program where nobody does."""
    host, _, port = _COORDINATOR.value.rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"--coordinator: {_COORDINATOR.value!r}; accepted: <host>:<port>")
    deadline = time.monotonic() + _CONNECT_SECONDS.value
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                waited = f"within {_CONNECT_SECONDS.value} seconds (--connect_seconds)"
                raise UserError(f"--coordinator: {host}:{port} did not answer {waited}: {error}") from None
            time.sleep(0.2)


def is_first() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def broadcast_from_first(number: int) -> int:
    """The first process's number, everywhere."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def max_over_processes(number: int) -> int:
    """The highest of all processes' numbers."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def barrier() -> None:
    """Until all processes have come here."""
    broadcast_from_first(0)


def true_everywhere(yes: bool) -> bool:
    """Whether all processes say yes."""
    return not max_over_processes(not yes)


def exists_on_first(path: pathlib.Path) -> bool:
    """Whether the first process sees a file: the same answer everywhere."""
    return bool(broadcast_from_first(is_first() and path.exists()))


def check_same_everywhere(things: Mapping[str, str]) -> None:
    """Compares what the processes start from.

    Args:
      things: what must be the same, by name.

    Raises:
      UserError: it is not; names the processes that differ from the first.
    """
    if jax.process_count() == 1:
        return
    hashes = [[*hashlib.sha256(text.encode()).digest()] for text in things.values()]
    all_hashes = multihost_utils.process_allgather(np.array(hashes, np.int32))
    for number, name in enumerate(things):
        others = [str(p) for p, theirs in enumerate(all_hashes) if (theirs[number] != all_hashes[0][number]).any()]
        if others:
            raise UserError(f"{name} differ between process 0 and {', '.join(others)}; accepted: the same everywhere")


def to_host(tree: Any) -> Any:
    """Arrays of the mesh as numpy arrays, whole, on every process."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def exit_on_sigterm() -> None:
    """Has a SIGTERM, as clouds and schedulers send it before they take a machine, end the command with `EXIT_RERUN`.

    At once, but for a program that is being compiled; of several processes only where all ask together whether one was
    told (`exit_if_told`, `deferred_sigterm`).
    """
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(EXIT_RERUN))
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: _told.append(number))


def exit_if_told() -> None:
    """Ends all processes where one of them got a SIGTERM; what they have done so far is on disk."""
    if jax.process_count() > 1 and _anyone_told():
        sys.exit(EXIT_RERUN)


@contextmanager
def deferred_sigterm() -> Iterator[Callable[[], bool]]:
    """Within it a SIGTERM waits to be asked about, so that what was computed can be saved first.

    Yields:
      Whether to save and end now, to be asked by all processes together.
    """
    if jax.process_count() > 1:
        yield _anyone_told
        return
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        yield lambda: bool(told)
    finally:
        signal.signal(signal.SIGTERM, before)
    if told:  # after the last time that somebody asked
        sys.exit(EXIT_RERUN)


def _anyone_told() -> bool:
    return max_over_processes(len(_told)) > 0
