"""Every exception becomes one line and a status."""

import errno
import os

import pytest

from rdjax.errors import UserError, needing
from rdjax.run.error_lines import EXIT_FAULT, EXIT_MISTAKE, LOG, describe_error, unknown_field

KNOWN = {
    "a mistake": (UserError("a\nb"), "a b"),
    "a full disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/file"), "the disk is full: /x/file"),
    "a quota": (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk is full"),
    "a full disk of safetensors": (Exception("I/O error: No space left on device (os error 28)"), "the disk is full"),
    "no permission": (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
    "a read-only disk": (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system"),
    "a long name": (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), "/x: File name too long"),
    "two names": (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "/a -> /b: Invalid"),
    "host memory": (MemoryError(), "memory does not suffice; what helps: a smaller config.train.batch_size"),
    "device memory": (
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123456 bytes."),
        "memory does not suffice (123456 bytes asked for at once)",
    ),
    "a platform": (RuntimeError("Unable to initialize backend 'tpu': none"), "JAX_PLATFORMS=tpu: Unable to"),
}


@pytest.mark.parametrize(("error", "line"), KNOWN.values(), ids=KNOWN)
def test_what_is_known_needs_no_traceback(tmp_path, monkeypatch, error, line):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    ending = describe_error(error, tmp_path)
    assert ending.line.startswith(line) and "\n" not in ending.line
    assert ending.status == EXIT_MISTAKE
    assert not (tmp_path / LOG).exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("'foo'"), "the config has no field foo; docs/configuration.md lists every field"),
        (AttributeError('\'rnk\'\nDid you mean "rank" instead of "rnk"?'), "no field rnk (did you mean rank?); docs"),
    ],
)
def test_a_misspelt_field_is_named(error, line):
    assert line in unknown_field(error)


def test_an_interrupt_says_how_to_go_on(tmp_path):
    assert describe_error(KeyboardInterrupt(), tmp_path) == (
        "interrupted; the same command goes on from what is on disk",
        130,
    )


def test_a_full_disk_says_what_is_left(tmp_path):
    line = describe_error(OSError(errno.ENOSPC, "full", "f"), tmp_path).line
    assert f"MiB free in {tmp_path})" in line


def test_a_full_disk_says_what_was_needed(tmp_path):
    with pytest.raises(OSError) as caught, needing(3 * 2**20):
        raise OSError(errno.ENOSPC, "full", "f")
    assert describe_error(caught.value, None).line == "the disk is full: f (3.0 MiB needed); make room and run again"


def raised() -> Exception:
    try:
        raise ValueError("an odd\ntext with half of a character: \ud800")
    except ValueError as error:
        return error


@pytest.mark.parametrize("exists", [True, False])
def test_an_unknown_one_leaves_its_traceback_in_a_file(tmp_path, monkeypatch, exists):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    workdir = tmp_path / "run"
    if exists:
        workdir.mkdir()
    ending = describe_error(raised(), workdir)
    log = (workdir if exists else tmp_path) / LOG
    assert ending.status == EXIT_FAULT
    assert ending.line.startswith("a fault of rdjax, ValueError: an odd text") and str(log) in ending.line
    assert "Traceback" in log.read_text() and "in raised" in log.read_text()
