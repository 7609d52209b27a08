"""Coordinates the processes of a run on several hosts: how they connect, agree and end together.

All run the same command and see the same --workdir. The first one writes files and prints; the others only compute.
"""

import hashlib
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from absl import flags

# JAX has no stable module for this; its documentation recommends this one.
from jax.experimental import multihost_utils

from rdjax.errors import UserError

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Run as one of several processes; a TPU pod, SLURM or Open MPI says which one in the environment.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Without such an environment: <host>:<port> of the first process."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: the number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer(
    "process", None, "With --coordinator: the number of this process, from 0.", lower_bound=0
)
_CONNECT_SECONDS = flags.DEFINE_integer(
    "connect_seconds", 300, "Seconds to wait for the other processes.", lower_bound=1
)

# The exit status after a SIGTERM: the run is saved, and the same command resumes it (EX_TEMPFAIL of sysexits.h).
EXIT_RERUN = 75
EXIT_INTERRUPTED = 128 + signal.SIGINT  # likewise after Ctrl-C; as shells report it

_received_sigterms: list[int] = []  # by this process, where there are several


def join_processes() -> None:
    """Connects to the other processes, where the flags ask for it; only the first one prints from then on.

    Raises:
      UserError: the flags do not fit each other, or the coordinator does not answer.
    """
    explicit = _explicit_flags()
    if not explicit and not _DISTRIBUTED.value:
        return
    if explicit and _PROCESS.value:
        _await_coordinator()
    address = _COORDINATOR.value or "the coordinator that the environment names"
    failure = f"--coordinator: {address} and all processes did not meet within {_CONNECT_SECONDS.value} seconds"
    # Where some do not come JAX ends the process by a signal, without a word that a user understands.
    watch = threading.Timer(_CONNECT_SECONDS.value, _end_at_once, [failure])
    watch.daemon = True
    watch.start()
    # JAX's own handling of SIGTERM decides once in a process's life; ours asks again after every update.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            _COORDINATOR.value,
            _PROCESSES.value,
            _PROCESS.value,
            local_device_ids=None if explicit else _gpus_of_the_node(),
            cluster_detection_method="deactivate" if explicit else None,
            initialization_timeout=_CONNECT_SECONDS.value + 60,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{failure} ({' '.join(str(error).split())[:200]})") from None
    finally:
        watch.cancel()
    if not is_first():
        sys.stdout = pathlib.Path(os.devnull).open("w")  # noqa: SIM115 (open as long as the process lives)


def _end_at_once(message: str) -> None:
    """Ends the process with one line and the status of a user's mistake, whatever its other threads wait for."""
    os.write(2, f"error: {message}\n".encode())
    os._exit(2)


def _explicit_flags() -> bool:
    """Tells whether the flags name the coordinator and this process, and checks that they fit each other."""
    values = {"coordinator": _COORDINATOR.value, "processes": _PROCESSES.value, "process": _PROCESS.value}
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if len(missing) == len(values):
        return False
    if missing:
        first = next(name for name, value in values.items() if value is not None)
        raise UserError(f"--{first} without {', '.join(missing)}; accepted: all three, or --distributed alone")
    port = values["coordinator"].rpartition(":")[2]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={values['coordinator']}; accepted: <host>:<port>, with a port of 1 to 65535")
    if values["process"] >= values["processes"]:
        raise UserError(f"--process = {values['process']} of --processes = {values['processes']}; they count from 0")
    return True


def _gpus_of_the_node() -> list[int] | None:
    """Returns all GPUs of a node where SLURM runs one task per node, for which JAX would take one GPU; else None."""
    one_task = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if one_task and gpus.isdigit() else None


def _await_coordinator() -> None:
    """Waits until the first process listens, because JAX's own client aborts the program where nobody does."""
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
    """Tells whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def broadcast_from_first(number: int) -> int:
    """Returns the first process's number on every process."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def max_over_processes(number: int) -> int:
    """Returns the highest of all processes' numbers on every process."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def barrier() -> None:
    """Waits until all processes have reached this call."""
    broadcast_from_first(0)


def true_everywhere(condition: bool) -> bool:
    """Tells every process whether the condition is true on all of them."""
    return not max_over_processes(not condition)


def exists_on_first(path: pathlib.Path) -> bool:
    """Tells every process whether a path exists for the first one."""
    return bool(broadcast_from_first(is_first() and path.exists()))


def check_same_everywhere(texts: Mapping[str, str]) -> None:
    """Checks that all processes start from the same inputs.

    Args:
      texts: what must be the same, under names in the plural.

    Raises:
      UserError: names the first text that differs, and the processes that differ from the first one.
    """
    if jax.process_count() == 1:
        return
    hashes = [[*hashlib.sha256(text.encode()).digest()] for text in texts.values()]
    all_hashes = multihost_utils.process_allgather(np.array(hashes, np.int32))
    for number, name in enumerate(texts):
        others = [str(p) for p, hashes in enumerate(all_hashes) if (hashes[number] != all_hashes[0][number]).any()]
        if others:
            raise UserError(f"{name} differ between process 0 and {', '.join(others)}; accepted: the same everywhere")


def to_host(tree: Any) -> Any:
    """Copies arrays of the mesh, whole, to numpy arrays on every process."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def exit_on_sigterm() -> None:
    """Makes the command end with `EXIT_RERUN` on SIGTERM, which clouds and schedulers send before they take a machine.

    A single process ends at once (a compilation finishes first). Several processes end together, where all of them
    ask whether one has received the signal: `exit_if_signalled`, `deferred_signals`.
    """
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _exit_now)
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: _received_sigterms.append(number))


def _exit_now(number: int, frame: Any) -> None:
    """Ends the process on a SIGTERM."""
    del number, frame
    _say("told to end: the same command goes on from what is on disk")
    sys.exit(EXIT_RERUN)


def _say(line: str) -> None:
    """Writes a line to standard error from a signal handler, where `print` may be in the middle of another line."""
    os.write(2, f"\n{line}\n".encode())


def exit_if_signalled() -> None:
    """Ends all of several processes if one of them has received a SIGTERM; to be called where all work is on disk."""
    if jax.process_count() > 1 and _sigterm_anywhere():
        sys.exit(EXIT_RERUN)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int]]:
    """Defers SIGTERM and Ctrl-C (SIGINT) within a `with` block, so that the run can be saved first.

    A second Ctrl-C ends the block at once.

    Yields:
      A function that returns the exit status with which to save and end now, 0 as long as nothing asks for it. All
      processes must call it together.
    """
    if jax.process_count() > 1:
        yield lambda: EXIT_RERUN if _sigterm_anywhere() else 0
        return
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield lambda: 0
        return
    statuses: list[int] = []

    def on_interrupt(number: int, frame: Any) -> None:
        del number, frame
        if EXIT_INTERRUPTED in statuses:
            raise KeyboardInterrupt
        statuses.append(EXIT_INTERRUPTED)
        _say("interrupted: saving first; once more ends at once")

    handlers = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: statuses.append(EXIT_RERUN)),
    }
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background, where Ctrl-C is for others
        handlers[signal.SIGINT] = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: statuses[0] if statuses else 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if statuses:  # after the last call of the yielded function
        end_with(statuses[0])


def end_with(status: int) -> None:
    """Ends the command on a signal; a notebook sees the interrupt as such, and goes on."""
    if status == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    sys.exit(status)


def _sigterm_anywhere() -> bool:
    """Tells every process whether one of them has received a SIGTERM."""
    return max_over_processes(len(_received_sigterms)) > 0
