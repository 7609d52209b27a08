"""Real processes upon which a fault comes: each ends in one line, and the run goes on when the cause is gone."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest

from rdjax.parallel.processes import EXIT_INTERRUPTED, EXIT_RERUN
from tests.faults.runs import adapter_of, arguments, write_task

pytestmark = pytest.mark.slow

ON_CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Returns the task, and the adapter of a run that no fault came upon."""
    folder = tmp_path_factory.mktemp("whole")
    root = write_task(folder / "task")
    assert end(start(model, root, folder / "run"))[0] == 0
    return root, adapter_of(folder / "run")


def start(model, root, workdir, *options: str, limit: int | None = None, **environment) -> subprocess.Popen:
    """Starts a run; `limit` is of the size of files that it may write, in bytes."""

    def restrict():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background, where tests may run, ignores it
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "rdjax.train", *arguments(model, root, workdir), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | ON_CPU | environment,
        preexec_fn=restrict,
    )


def end(process: subprocess.Popen) -> tuple[int, str, list[str]]:
    """Waits for a process; returns its status, its output, and its lines of error."""
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("error: ")]


def wait_for(process: subprocess.Popen, path: pathlib.Path, pattern: str) -> None:
    """Waits until a file of this name pattern exists below a folder."""
    deadline = time.monotonic() + 200
    while not any(path.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, f"ended before {pattern}"
        time.sleep(0.005)


# What exists when each phase has begun.
PHASES = {"answers of the teacher": "config.json", "training": "checkpoints/student/[0-9]*", "evaluation": "adapter"}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, EXIT_RERUN)])
def test_a_signal_ends_a_run_that_then_goes_on(model, whole, tmp_path, phase, number, status):
    root, adapter = whole
    workdir = tmp_path / "run"
    process = start(model, root, workdir)
    wait_for(process, workdir, PHASES[phase])
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    assert "the same command goes on from" in out + err and "Traceback" not in err
    assert end(start(model, root, workdir))[0] == 0
    assert adapter_of(workdir) == adapter


def test_a_second_interrupt_ends_at_once(model, whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(model, whole[0], workdir, "--config.train.epochs=4000", "--config.train.checkpoint_every=1")
    wait_for(process, workdir, PHASES["training"])
    began = time.monotonic()
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
        assert time.monotonic() - began < 60
    process.communicate()
    assert process.returncode in (EXIT_INTERRUPTED, -signal.SIGINT)


@pytest.mark.parametrize("limit", [3_000, 30_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on(model, whole, tmp_path, limit):
    root, adapter = whole
    workdir = tmp_path / "run"
    status, _, lines = end(start(model, root, workdir, limit=limit))
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("error: the disk is full: ") and "MiB needed, " in lines[0] and "MiB free in" in lines[0]
    assert end(start(model, root, workdir))[0] == 0
    assert adapter_of(workdir) == adapter


def test_two_runs_at_once_are_one_run_and_one_line(model, whole, tmp_path):
    root, adapter = whole
    ends = [end(process) for process in [start(model, root, tmp_path / "run") for _ in range(2)]]
    assert sorted(status for status, *_ in ends) == [0, 2]
    (line,) = next(lines for status, _, lines in ends if status == 2)
    assert f"another run works in {tmp_path / 'run'} (process " in line
    assert adapter_of(tmp_path / "run") == adapter


def test_a_platform_that_is_not_there_is_one_line(model, whole, tmp_path):
    status, _, lines = end(start(model, whole[0], tmp_path / "run", JAX_PLATFORMS="quantum"))
    assert (status, len(lines)) == (2, 1) and lines[0].startswith("error: JAX_PLATFORMS=quantum: ")
    assert not (tmp_path / "run").exists()


def test_a_narrow_terminal_reads_what_it_can(model, tmp_path):
    root = write_task(tmp_path / "task")
    (root / "rule.md").write_text("Answer with \u898f\u5247 and \U0001f389.", encoding="utf-8")
    status, out, _ = end(start(model, root, tmp_path / "run", PYTHONIOENCODING="cp1252"))
    assert status == 0 and r"\u898f\u5247" in out


def test_no_home_and_no_user_name_do_not_matter(model, whole, tmp_path):
    root, adapter = whole
    code = "import os, pwd, runpy, sys\nos.environ.pop('HOME', None)\n"
    code += "def missing(uid): raise KeyError(uid)\npwd.getpwuid = missing\n"
    code += f"sys.argv = {['rdjax.train', *arguments(model, root, tmp_path / 'run')]!r}\n"
    code += "runpy.run_module('rdjax.train', run_name='__main__', alter_sys=True)\n"
    environment = os.environ | ON_CPU | {"JAX_ENABLE_COMPILATION_CACHE": "true"}
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert adapter_of(tmp_path / "run") == adapter
