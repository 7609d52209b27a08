"""Provides the tests of the scripts with a stubbed cloud, a checkout and commands to run."""

import os
import pathlib
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.tpu_scripts.cloud import FOLDER, TOOLS, Cloud, git


@pytest.fixture(autouse=True)
def tools():
    """Skips the tests where a tool that the scripts need is missing."""
    if any(shutil.which(tool) is None for tool in TOOLS):
        pytest.skip(f"needs {', '.join(TOOLS)}")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> pathlib.Path:
    """Makes a repository of the scripts and a tracked file."""
    folder = tmp_path_factory.mktemp("checkout") / "repository"
    shutil.copytree(FOLDER, folder / "tpu_scripts")
    (folder / "tracked").write_text("first")
    git(folder, "init", "-q", "--template=")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "m")
    return folder


@pytest.fixture
def own_checkout(checkout, tmp_path) -> pathlib.Path:
    """Copies the repository, for a test that changes it."""
    return shutil.copytree(checkout, tmp_path / "own")


@pytest.fixture
def cloud(tmp_path, checkout) -> Iterator[Cloud]:
    """Provides a cloud without a slice; stops what still runs on its hosts at the end."""
    cloud = Cloud(tmp_path, checkout)
    yield cloud
    for host in cloud.hosts:
        stop = host / "rdjax" / "tpu_scripts" / "host" / "stop.sh"
        if stop.exists():
            subprocess.run(["bash", stop], env={"HOME": str(host), "PATH": os.environ["PATH"]}, capture_output=True)


@pytest.fixture
def command(tmp_path) -> Callable[[str], list[str]]:
    """Provides a function that makes a command of lines of shell; `$HOST` is the host's number, `$CLOUD` the cloud."""

    def make(text: str) -> list[str]:
        path = tmp_path / "command.sh"
        path.write_text(textwrap.dedent(text))
        return ["bash", str(path)]

    return make
