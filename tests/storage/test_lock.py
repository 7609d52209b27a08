"""Tests the lock of a folder: only one process holds it, and it is free again once that process has ended."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rdjax.errors import UserError
from rdjax.storage import lock
from rdjax.storage.lock import OWNER, lock_folder, unlock_folder

HOLDER = """
    import pathlib, sys, time
    from rdjax.storage.lock import lock_folder
    lock_folder(pathlib.Path(sys.argv[1]))
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def unlocked(tmp_path):
    yield
    unlock_folder(tmp_path)


def test_another_process_is_named(tmp_path, holder):
    with pytest.raises(UserError, match=rf"another run works in .*\(process {holder.pid} on .+, since \d{{4}}-"):
        lock_folder(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process(tmp_path, holder, number):
    holder.send_signal(number)
    holder.wait()
    lock_folder(tmp_path)
    assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()


def test_a_process_may_lock_again(tmp_path):
    lock_folder(tmp_path)
    lock_folder(tmp_path)
    unlock_folder(tmp_path)
    assert not (tmp_path / OWNER).exists()


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.05)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.5)


def of_another_host(folder):
    owner = {"host": "elsewhere", "process": 7, "since": "2026-01-01 00:00:00 +0000"}
    (folder / OWNER).write_text(json.dumps(owner))


def test_another_host_that_is_at_work_is_named(tmp_path, soon):
    """Its lock is not seen here, but its file is touched."""
    of_another_host(tmp_path)
    ended = threading.Event()

    def touch():
        while not ended.wait(0.05):
            os.utime(tmp_path / OWNER)

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(UserError, match="process 7 on elsewhere"):
        lock_folder(tmp_path)
    ended.set()
    thread.join()


def test_another_host_that_is_gone_does_not_count(tmp_path, soon, capsys):
    of_another_host(tmp_path)
    lock_folder(tmp_path)
    assert "names a run on elsewhere; waiting" in capsys.readouterr().out


@pytest.fixture
def without_locks(monkeypatch):
    def none(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", none)


def test_a_file_system_without_locks_does_with_the_touched_file(tmp_path, soon, without_locks):
    lock_folder(tmp_path)
    before = (tmp_path / OWNER).stat().st_mtime_ns
    deadline = time.monotonic() + 10
    while (tmp_path / OWNER).stat().st_mtime_ns == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / OWNER).stat().st_mtime_ns != before


def test_a_file_system_without_locks_tells_of_a_process_of_the_same_host(tmp_path, soon, without_locks, holder):
    stop = threading.Event()

    def touch():  # the holder does it every ten seconds
        while not stop.wait(0.05):
            os.utime(tmp_path / OWNER)

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(UserError, match=f"process {holder.pid} on"):
        lock_folder(tmp_path)
    stop.set()
    thread.join()
    holder.kill()
    holder.wait()
    began = time.monotonic()
    lock_folder(tmp_path)
    assert time.monotonic() - began < lock.WATCH_SECONDS


def test_a_damaged_owner_file_does_not_matter(tmp_path):
    (tmp_path / OWNER).write_bytes(b"\xff[")
    lock_folder(tmp_path)
