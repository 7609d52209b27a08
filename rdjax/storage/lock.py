"""Lets one run at a time work in a folder.

A lock of the operating system (flock) holds other processes off, and goes with the process however it ends. Not every
shared file system has such locks, or has them across hosts: there lock.json says who works in the folder, and its
owner touches it all the time. Who finds another's name waits, to see whether it is touched.

The package filelock would replace a lock that a file system has not by one that outlives a kill.
"""

import atexit
import contextlib
import errno
import json
import os
import pathlib
import socket
import threading
import time
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from rdjax.errors import UserError
from rdjax.parallel.processes import is_first, true_everywhere

LOCK, OWNER = "lock", "lock.json"
FILES = (LOCK, OWNER)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # what a file system without locks says
TOUCH_SECONDS = 10.0
WATCH_SECONDS = 3 * TOUCH_SECONDS


class Held(NamedTuple):
    """Holds what ends with a lock: the file that has it, None where the file system has no locks, and the touching."""

    file: int | None
    released: threading.Event


_held: dict[pathlib.Path, Held] = {}  # by this process


def lock_folder(folder: pathlib.Path) -> None:
    """Makes this process the only one that works in a folder; again if it is that already.

    Raises:
      UserError: another process works in it; names its host and number.
    """
    message = _lock(folder.resolve()) if is_first() else ""
    if not true_everywhere(not message):
        raise UserError(message or f"--workdir: {folder} is locked by another run")


def unlock_folder(folder: pathlib.Path) -> None:
    """Ends this process's lock of a folder, if it has one."""
    held = _held.pop(folder.resolve(), None)
    if held is None:
        return
    held.released.set()
    with contextlib.suppress(OSError):
        (folder / OWNER).unlink(missing_ok=True)
    if held.file is not None:
        os.close(held.file)


@atexit.register
def _unlock_all() -> None:
    """Ends all locks of this process."""
    for folder in list(_held):
        unlock_folder(folder)


def _lock(folder: pathlib.Path) -> str:
    """Locks a folder; returns a message if that cannot be."""
    if folder in _held:
        return ""
    try:
        file = _flock(folder / LOCK)
    except BlockingIOError:
        return _in_use(folder, _owner(folder))
    owner = _owner(folder)
    if (file is None or owner.get("host") != socket.gethostname()) and _is_at_work(folder, owner):
        if file is not None:
            os.close(file)
        return _in_use(folder, owner)
    text = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%F %T %z")})
    (folder / OWNER).write_text(text + "\n", encoding="utf-8")
    _held[folder] = Held(file, threading.Event())
    threading.Thread(target=_touch, args=(folder / OWNER, _held[folder].released), daemon=True).start()
    return ""


def _flock(path: pathlib.Path) -> int | None:
    """Opens and locks a file; returns its descriptor, None where there are no locks.

    Raises:
      BlockingIOError: another process has the lock.
    """
    if fcntl is None:
        return None
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in NO_LOCKS:
            return None
        raise
    return file


def _owner(folder: pathlib.Path) -> dict[str, object]:
    """Returns what lock.json says of the process that works in a folder; nothing if it cannot be read."""
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_at_work(folder: pathlib.Path, owner: dict[str, object]) -> bool:
    """Tells whether the process that lock.json names touches it: by changes alone, as hosts' clocks differ."""
    path, number = folder / OWNER, owner.get("process")
    if not owner or (owner.get("host") == socket.gethostname() and isinstance(number, int) and not _is_alive(number)):
        return False
    try:
        before = path.stat().st_mtime_ns
        print(f"{path} names a run on {owner.get('host')}; waiting {WATCH_SECONDS:.0f} s to see whether it is at work")
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, WATCH_SECONDS / 10))
            if path.stat().st_mtime_ns != before:
                return True
    except OSError:  # it has ended meanwhile
        pass
    return False


def _is_alive(process: int) -> bool:
    """Tells whether a process of this host exists."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        pass
    return True


def _touch(path: pathlib.Path, released: threading.Event) -> None:
    """Touches a file until the lock is released."""
    while not released.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _in_use(folder: pathlib.Path, owner: dict[str, object]) -> str:
    """Returns the message that another process works in a folder."""
    who = f"process {owner['process']} on {owner['host']}, since {owner['since']}" if len(owner) == 3 else "a process"
    return f"--workdir: another run works in {folder} ({who}); wait for it, or take another folder"
