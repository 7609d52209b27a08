"""Checks what all scripts share: help, settings, mistakes, and that they are sound bash."""

import os
import shutil
import subprocess

import pytest

from tests.tpu_scripts.cloud import COMMANDS, FOLDER, SETTINGS, STUBS

SCRIPTS = [*sorted(FOLDER.rglob("*.sh")), *sorted(STUBS.glob("*/*"))]


@pytest.mark.parametrize("script", COMMANDS)
def test_help_needs_no_settings(script):
    text = (FOLDER / f"{script}.sh").read_text()
    environment = {"PATH": os.environ["PATH"]}
    ended = subprocess.run([FOLDER / f"{script}.sh", "--help"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[0] == text.splitlines()[1].removeprefix("# ")
    assert f"  {script}.sh [" in ended.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_what_is_missing_or_misspelt_ends_with_one_line(script, cloud):
    words = {"launch": ["--", "true"], "resume": ["--", "true"], "copy": ["runs/a"]}.get(script, [])
    missing = cloud.run(script, *words, TPU_NAME="", TPU_ZONE="")
    assert (missing.status, missing.out, missing.calls) == (2, "", [])
    assert missing.errors == [
        "error: not set: TPU_NAME TPU_ZONE; set it in the environment or in the file that TPU_SETTINGS names"
    ]
    misspelt = cloud.run(script, "--spt", *words)
    assert (misspelt.status, misspelt.calls) == (2, [])
    assert misspelt.errors == [f"error: the argument '--spt' is not understood; see {script}.sh --help"]


@pytest.mark.parametrize(
    ("script", "words", "settings", "error"),
    [
        ("create", [], {"TPU_TYPE": ""}, "not set: TPU_TYPE"),
        ("create", ["word"], {}, "the argument 'word' is not understood"),
        ("create", [], {"TPU_WAIT": "1h"}, "TPU_WAIT: '1h' is not a whole number"),
        ("create", [], {"TPU_SETTINGS": "/not/there"}, "TPU_SETTINGS: /not/there cannot be read"),
        ("launch", [], {}, "a command is wanted behind --"),
        ("launch", ["true"], {}, "the argument 'true' is not understood"),
        ("resume", ["--"], {}, "a command is wanted behind --"),
        ("logs", ["--worker=all"], {}, "--worker=all: the number of one host is wanted"),
        ("copy", [], {}, "a folder is wanted"),
        ("copy", ["runs/a"], {"TPU_BUCKET": ""}, "not set: TPU_BUCKET"),
        ("copy", ["runs/a", "/tmp/a"], {}, "/tmp/a is not in a bucket"),
    ],
)
def test_mistakes(script, words, settings, error, cloud):
    ended = cloud.run(script, *words, **settings)
    assert (ended.status, ended.calls, len(ended.errors)) == (2, [], 1)
    assert ended.errors[0].startswith(f"error: {error}")


def test_settings_come_from_a_file_and_the_environment_goes_first(cloud, tmp_path):
    (tmp_path / "my tpu.sh").write_text(': "${TPU_NAME:=mine}"\n: "${TPU_ZONE:=elsewhere}"\n')
    ended = cloud.run("delete", TPU_SETTINGS=str(tmp_path / "my tpu.sh"), TPU_NAME="")
    assert ended.calls[0][4:7] == ["describe", "mine", "--zone=us-west4-a"]


def test_the_example_settings_are_all_that_is_needed(cloud):
    names = dict.fromkeys(SETTINGS, "")
    ended = cloud.run("create", "--dry-run", TPU_SETTINGS=str(FOLDER / "settings.example.sh"), **names)
    assert (ended.status, ended.errors) == (0, [])
    assert "--accelerator-type=v5litepod-16" in ended.out


def test_every_command_is_executable_and_nothing_else_is():
    assert COMMANDS == ["copy", "create", "delete", "install", "launch", "logs", "resume", "status", "stop"]
    executable = {path.name for path in FOLDER.glob("*.sh") if os.access(path, os.X_OK)}
    assert executable == {f"{name}.sh" for name in COMMANDS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_bash(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing():
    ended = subprocess.run(["shellcheck", "-x", *SCRIPTS], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
