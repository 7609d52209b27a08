"""A run that is killed and rerun ends with the adapter of an uninterrupted one, bit for bit."""

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
    """Sends the signal; the exit status."""
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
    """An uninterrupted workdir, and two that were killed, and told to end, and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    made = [folder / name for name in ("whole", "killed", "told")]
    finish(made[0])
    for workdir, how, status in ((made[1], signal.SIGKILL, -9), (made[2], signal.SIGTERM, EXIT_RERUN)):
        assert end_after_first_checkpoint(workdir, how) == status
        assert not (workdir / "adapter").exists(), "ended too late to prove anything"
        finish(workdir)
    return made


def test_adapter_is_bit_identical(runs):
    whole, killed, told = ((run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs)
    assert whole == killed == told


def test_metrics_have_no_gap_and_no_double(runs):
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if line["stage"] == "student"] == list(range(1, 13))


def test_finished_run_says_so_and_changes_nothing(runs):
    before = {
        path: path.stat().st_mtime_ns
        for path in runs[0].rglob("*")
        if path.is_file() and "tensorboard" not in str(path)
    }
    assert "is finished" in finish(runs[0])
    assert before == {path: path.stat().st_mtime_ns for path in before}
