"""A damaged file ends in one line, or the run is right all the same; never in another adapter without a word.

`python -m tests.faults.long --damages=200` tries more.
"""

import pathlib
import shutil

import pytest

from rdjax import train
from rdjax.storage.lock import unlock_folder
from tests.commands import run_command
from tests.faults.damage import KINDS, damage
from tests.faults.runs import adapter_of, arguments, run_in_part, run_whole, write_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """Returns the task, a run that ended in the middle, and a whole one."""
    folder = tmp_path_factory.mktemp("runs")
    root = write_task(folder / "task")
    run_in_part(model, root, folder / "part")
    run_whole(model, root, folder / "whole")
    return root, folder / "part", folder / "whole"


def go_on(model, root: pathlib.Path, workdir: pathlib.Path, whole: pathlib.Path, capfd) -> None:
    """Runs the command again, and checks how it ends."""
    status = run_command(train.main, *arguments(model, root, workdir))
    captured = capfd.readouterr()
    unlock_folder(workdir)
    assert "Traceback" not in captured.err and not (workdir / "error.log").exists()
    if status == 0:
        assert adapter_of(workdir) == adapter_of(whole)
    else:
        assert status == 2
        assert len([line for line in captured.err.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.parametrize("seed", range(4 * len(KINDS)))
@pytest.mark.parametrize("state", ["part", "whole"])
def test_damage_is_seen_or_does_not_matter(model, runs, tmp_path, capfd, state, seed):
    root, part, whole = runs
    workdir = tmp_path / "run"
    shutil.copytree(part if state == "part" else whole, workdir)
    done = damage(workdir, seed)
    capfd.readouterr()
    print(done)
    go_on(model, root, workdir, whole, capfd)


def newest(workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the newest checkpoint."""
    steps = [path for path in (workdir / "checkpoints" / "student").iterdir() if path.name.isdigit()]
    return max(steps, key=lambda path: int(path.name))


@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_damaged_checkpoint_is_passed_over(model, runs, tmp_path, capfd, caplog, all_of_them):
    root, part, whole = runs
    workdir = tmp_path / "run"
    shutil.copytree(part, workdir)
    steps = (workdir / "checkpoints" / "student").glob("[0-9]*") if all_of_them else [newest(workdir)]
    for step in steps:
        file = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1])
    go_on(model, root, workdir, whole, capfd)
    assert adapter_of(workdir) == adapter_of(whole)
    assert "the one before is used" in caplog.text


def test_a_damaged_adapter_is_made_again(model, runs, tmp_path, capfd):
    root, _, whole = runs
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    path = workdir / "adapter" / "adapter_model.safetensors"
    path.write_bytes(adapter_of(whole)[:-1] + b"x")
    assert run_command(train.main, *arguments(model, root, workdir)) == 2
    assert f"{path}: is damaged" in capfd.readouterr().err
    (workdir / "eval.json").unlink()
    assert run_command(train.main, *arguments(model, root, workdir)) == 0
    assert adapter_of(workdir) == adapter_of(whole)


def test_damaged_signals_are_computed_again(model, runs, tmp_path, caplog):
    root, part, whole = runs
    workdir = tmp_path / "run"
    shutil.copytree(part, workdir)
    path = next((workdir / "checkpoints" / "signals").rglob("inputs-0"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    assert run_command(train.main, *arguments(model, root, workdir)) == 0
    assert "the signals are computed again" in caplog.text
    assert adapter_of(workdir) == adapter_of(whole)
