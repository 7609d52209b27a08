"""Tests that two processes of four devices each end as one does, also when they are killed and resumed."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from rdjax.parallel.processes import EXIT_RERUN
from tests import tiny
from tests.commands import known

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = (
    "rdjax.train",
    "--config=configs/quickstart.py",
    "--config.task.k=5",
    "--config.task.generated.test_rows=3",
    "--config.train.epochs=16",
    "--config.train.valid_every=5",
    "--config.train.checkpoint_every=1",
    "--config.lora.rank=2",
    "--config.lora.dropout=0.1",
    "--config.eval.systems=('base_with_rule','student')",
    "--config.eval.max_new_tokens=2",
    "--config.eval.batch_size=4",
)
SWEEP = (
    "rdjax.sweep",
    "--config=configs/sweeps/arithmetic.py",
    "--config.sweep.methods=('rule_distill_base',)",
    "--config.sweep.ks=(5,)",
    "--config.sweep.seeds=(0,1)",
    "--config.sweep.updates=4",
    "--config.task.responses=teacher",
    "--config.task.generated.test_rows=3",
    "--config.train.teacher_signals=disk",
    "--config.lora.rank=2",
    "--config.eval.systems=('base_with_rule','student')",
    "--config.eval.max_new_tokens=2",
    "--config.eval.batch_size=4",
)
SPREAD = ("--config.mesh.fsdp=4", "--config.mesh.tensor=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.write_random_checkpoint(folder, tiny.LLAMA2 | {"max_position_embeddings": 4096}, shards=2)
    return tiny.write_tokenizer(folder)


def start(
    model: pathlib.Path, workdir: pathlib.Path, devices: int, *more: str, command: tuple[str, ...] = TRAIN
) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", *command, f"--config.model.path={model}", f"--workdir={workdir}", *more],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(model: pathlib.Path, workdir: pathlib.Path, command: tuple[str, ...] = TRAIN) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    return [
        start(model, workdir, 4, *SPREAD, address, "--processes=2", f"--process={number}", command=command)
        for number in range(2)
    ]


def end(processes: list[subprocess.Popen], status: int = 0) -> list[str]:
    """Waits for the processes and returns what each printed."""
    printed = [process.communicate(timeout=400) for process in processes]
    for process, (_, err) in zip(processes, printed, strict=True):
        assert process.returncode == status, err[-3000:]
    return [out for out, _ in printed]


def wait_for_checkpoint(workdir: pathlib.Path, processes: list[subprocess.Popen]) -> None:
    checkpoints, deadline = workdir / "checkpoints" / "student", time.monotonic() + 400
    while not (checkpoints.exists() and any(path.name.isdigit() for path in checkpoints.iterdir())):
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.01)


def answers_of_base(workdir: pathlib.Path) -> list[list[int]]:
    """Returns the tokens that the base with the rule answers to all test questions."""
    paths = sorted((workdir / "predictions").glob("*.base_with_rule.jsonl"))
    return [json.loads(line)["ids"] for path in paths for line in path.read_text().splitlines()]


def assert_same_end(workdir: pathlib.Path, other: pathlib.Path) -> None:
    """Compares adapters and scores, up to the rounding of another order of sums."""
    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (workdir, other))
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=1e-3 * max(np.abs(tensor).max(), 1e-3), err_msg=name)
    ours, theirs = (answers_of_base(run) for run in (workdir, other))
    assert ours == theirs
    ours, theirs = (json.loads((run / "eval.json").read_text())["splits"] for run in (workdir, other))
    assert list(ours) == list(theirs) == ["test_id", "test_ood", "retain"]
    for split, systems in theirs.items():
        for system, scores in systems.items():
            assert known(ours[split][system]) == pytest.approx(known(scores), rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory) -> pathlib.Path:
    """Returns the workdir of an uninterrupted run of one process and one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    end([start(model, workdir, 1)])
    return workdir


def test_two_processes_end_as_one(model, alone, tmp_path):
    """And only the first prints."""
    first, second = end(start_two(model, tmp_path / "run"))
    assert "wrote" in first
    assert "wrote" not in second
    assert_same_end(tmp_path / "run", alone)


def test_a_sweep_of_two_processes_ends_as_one(model, tmp_path):
    """Two seeds side by side; the teacher's own responses, its signals on disk."""
    end([start(model, tmp_path / "one", 1, command=SWEEP)])
    end(start_two(model, tmp_path / "two", SWEEP))
    seeds = [path.parent.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("eval.json"))]
    assert len(seeds) == 2
    for seed in seeds:
        assert_same_end(tmp_path / "two" / seed, tmp_path / "one" / seed)


def test_a_killed_process_is_followed_by_a_clean_resume(model, alone, tmp_path):
    """By two processes and, from a copy, by one on another mesh."""
    processes = start_two(model, tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", processes)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].communicate()
    processes[0].kill()  # it waits for the other, until its coordination service gives up
    processes[0].communicate()
    assert not (tmp_path / "run" / "adapter").exists(), "killed too late to prove anything"
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    end(start_two(model, tmp_path / "run"))
    assert_same_end(tmp_path / "run", alone)
    end([start(model, tmp_path / "copy", 2, "--config.mesh.data=2")])
    assert_same_end(tmp_path / "copy", alone)


def test_sigterm_to_one_saves_and_ends_both(model, alone, tmp_path):
    processes = start_two(model, tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", processes)
    processes[1].send_signal(signal.SIGTERM)
    first, _ = end(processes, EXIT_RERUN)
    assert "told to end: student is saved after update" in first
    end([start(model, tmp_path / "run", 1)])
    assert_same_end(tmp_path / "run", alone)


def test_processes_that_differ_say_so(model, tmp_path):
    """Another seed on one host."""
    processes = start_two(model, tmp_path / "run")
    processes[1].kill()
    processes[1].communicate()
    second = start(model, tmp_path / "run", 4, *processes[0].args[-6:-1], "--process=1", "--config.seed=9")
    for process in (processes[0], second):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2, err[-2000:]
        assert [line for line in err.splitlines() if line.startswith("error: the configs differ")]
    assert not (tmp_path / "run").exists()


def test_a_first_process_that_waits_in_vain_ends_with_one_line(model, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    alone = ("--processes=2", "--process=0", "--connect_seconds=3")
    process = start(model, tmp_path / "run", 1, f"--coordinator={address}", *alone)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err[-2000:]
    assert err.splitlines()[-1] == f"error: --coordinator: {address} and all processes did not meet within 3 seconds"


@pytest.mark.parametrize("address", ["localhost", "localhost:0", "localhost:99999"])
def test_a_coordinator_has_a_port(model, tmp_path, address):
    process = start(model, tmp_path / "run", 1, f"--coordinator={address}", "--processes=2", "--process=0")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and f"--coordinator={address}; accepted: <host>:<port>" in err


def test_a_coordinator_that_does_not_answer_is_named(model, tmp_path):
    address = "127.0.0.1:9"
    alone = ("--processes=2", "--process=1", "--connect_seconds=3")
    process = start(model, tmp_path / "run", 1, f"--coordinator={address}", *alone)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err[-2000:]
    assert [line for line in err.splitlines() if line.startswith("error:") and address in line]
