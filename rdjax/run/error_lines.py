"""Turns exceptions into the one line that a command ends with, and into its exit status."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
import traceback
from typing import NamedTuple

from rdjax.errors import NEEDED, UserError
from rdjax.parallel.processes import EXIT_INTERRUPTED
from rdjax.storage.workdir import LOG

EXIT_MISTAKE = 2  # bad input, or a machine that lacks something; running again goes on once that has changed
EXIT_FAULT = 70  # of the program itself (EX_SOFTWARE of sysexits.h)

FULL = ("no space left on device", "disk quota exceeded", "file too large", "os error 28", "os error 27")
# XLA: "Out of memory allocating 12345 bytes", "Out of memory while trying to allocate 12345 bytes".
ASKED = re.compile(r"allocat\w* (?:of )?([\d.]+ ?(?:[KMGT]i?B\b|bytes))", re.IGNORECASE)
LESS_MEMORY = (
    "what helps: a smaller config.train.batch_size or config.eval.batch_size, config.train.accumulation, "
    "config.model.remat = 'full', config.model.int8, or more devices (config.mesh)"
)


class Ending(NamedTuple):
    """Describes how a command ends on an exception: one line without "error:", and the exit status."""

    line: str
    status: int


def describe_error(error: BaseException, workdir: pathlib.Path | None) -> Ending:
    """Describes an exception to a user; the traceback of one that is not understood is written to a file.

    Args:
      workdir: where the command works, if it has such a folder.
    """
    text = one_line(error)
    if isinstance(error, UserError):
        return Ending(text, EXIT_MISTAKE)
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted; the same command goes on from what is on disk", EXIT_INTERRUPTED)
    known = _machine_error(error, text, workdir)
    if known:
        return Ending(known, EXIT_MISTAKE)
    log = _write_traceback(error, workdir)
    where = f"; the traceback is in {log}" if log else ""
    return Ending(f"a fault of rdjax, {type(error).__name__}: {text[:300]}{where}; please report it", EXIT_FAULT)


def _machine_error(error: BaseException, text: str, workdir: pathlib.Path | None) -> str:
    """Returns the line of an error for want of something that the machine should have; "" if it is another."""
    lower = text.lower()
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # Orbax and safetensors raise exceptions of their own, which only their texts tell apart.
    if full or any(sign in lower for sign in FULL):
        return f"the disk is full: {_named(error) or text[:200]}{_space(error, workdir)}; make room and run again"
    if isinstance(error, MemoryError) or "resource_exhausted" in lower or "out of memory" in lower:
        asked = ASKED.search(text)
        return f"memory does not suffice{f' ({asked[1]} asked for at once)' if asked else ''}; {LESS_MEMORY}"
    if "unable to initialize backend" in lower or "unknown backend" in lower:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        return f"JAX_PLATFORMS={wanted}: {text[:300]}; accepted: a platform that is installed, or leave it unset"
    if isinstance(error, OSError):
        return f"{_named(error)}: {error.strerror}" if _named(error) and error.strerror else text
    return ""


def _named(error: BaseException) -> str:
    """Returns the file that an OSError is about, "" if it names none."""
    names = [getattr(error, name, None) for name in ("filename", "filename2")]
    return " -> ".join(os.fsdecode(name) for name in names if isinstance(name, str | bytes | os.PathLike))


def _space(error: BaseException, workdir: pathlib.Path | None) -> str:
    """Says how much room was needed, where that is known, and how much a folder has left."""
    needed = [note.removeprefix(NEEDED) for note in getattr(error, "__notes__", ()) if note.startswith(NEEDED)]
    parts = [f"{int(needed[0]) / 2**20:.1f} MiB needed"] if needed else []
    if workdir:
        with contextlib.suppress(OSError):
            parts.append(f"{shutil.disk_usage(workdir).free / 2**20:.1f} MiB free in {workdir}")
    return f" ({', '.join(parts)})" if parts else ""


def _write_traceback(error: BaseException, workdir: pathlib.Path | None) -> pathlib.Path | None:
    """Appends a traceback to the log of the workdir, or of the folder for temporary files; None if neither can be."""
    lines = "".join(traceback.format_exception(error))
    for folder in (workdir, pathlib.Path(tempfile.gettempdir())):
        if folder is None or not folder.is_dir():
            continue
        try:
            with (folder / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(lines)
        except OSError:
            continue
        return folder / LOG
    return None


def one_line(error: BaseException) -> str:
    """Returns the message of an exception in one line; a KeyError's without the quotes that `str` adds."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(message).split())


def unknown_field(error: AttributeError | KeyError) -> str:
    """Returns the message of ml_collections for a field that a config does not have, in words."""
    text = one_line(error)
    name, meant = re.search(r"\w+", text), re.search(r'Did you mean "(\w+)"', text)
    advice = f" (did you mean {meant[1]}?)" if meant else ""
    return f"the config has no field {name[0] if name else text}{advice}; docs/configuration.md lists every field"
