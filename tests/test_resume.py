"""Tests that a run that is killed and rerun ends with the adapter of an uninterrupted one, bit for bit."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rdjax.parallel.processes import EXIT_RERUN

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = (
    "--config=configs/quickstart.py",
    "--config.task.k=4",
    "--config.train.epochs=12",
    "--config.train.batch_size=3",
    "--config.train.valid_every=3",
    "--config.train.checkpoint_every=2",
    "--config.lora.dropout=0.1",
    "--config.eval.systems=()",
)


def start(workdir: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "rdjax.train", *SETTINGS, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(workdir: pathlib.Path) -> str:
    process = start(workdir)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def end_after_first_checkpoint(workdir: pathlib.Path, how: signal.Signals) -> int:
    """Sends a signal and returns the exit status."""
    process = start(workdir)
    checkpoints = workdir / "checkpoints" / "student"
    deadline = time.monotonic() + 300
    while not (checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())):
        assert process.poll() is None and time.monotonic() < deadline, "ended before its first checkpoint"
        time.sleep(0.002)
    process.send_signal(how)
    process.communicate()
    return process.returncode


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the workdirs of an uninterrupted run, and of two that were killed or terminated, and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    workdirs = [folder / name for name in ("whole", "killed", "terminated")]
    finish(workdirs[0])
    for workdir, how, status in ((workdirs[1], signal.SIGKILL, -9), (workdirs[2], signal.SIGTERM, EXIT_RERUN)):
        assert end_after_first_checkpoint(workdir, how) == status
        assert not (workdir / "adapter").exists(), "ended too late to prove anything"
        finish(workdir)
    return workdirs


def test_adapter_is_bit_identical(runs):
    whole, killed, terminated = ((run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs)
    assert whole == killed == terminated


def test_metrics_have_no_gap_and_no_double(runs):
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if line["stage"] == "student"] == list(range(1, 13))


def test_finished_run_says_so_and_changes_nothing(runs):
    before = {
        path: path.stat().st_mtime_ns
        for path in runs[0].rglob("*")
        if path.is_file() and "tensorboard" not in str(path) and path.name != "lock"
    }
    assert "is finished" in finish(runs[0])
    assert before == {path: path.stat().st_mtime_ns for path in before}
