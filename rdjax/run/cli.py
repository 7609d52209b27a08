"""Starts the commands: parses absl flags, keeps compiled programs on disk, and ends with one line on an error."""

import hashlib
import os
import pathlib
import platform
import re
import signal
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from rdjax.errors import UserError
from rdjax.parallel import processes
from rdjax.run.error_lines import EXIT_MISTAKE, describe_error, one_line, unknown_field

CACHE_BYTES = 2 * 2**30  # of compiled programs; the least recently used are deleted first
KEY_FLAGS = ("config", "workdir", "distributed", "coordinator")  # of several commands
CPU_INFO = pathlib.Path("/proc/cpuinfo")


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the command line and calls `main` with the positional arguments.

    Every exception ends the command with one line on standard error, without a traceback (`describe_error`).
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            positional = flags.FLAGS(argv)
            # ml_collections reports a missing config file only when the config is first read.
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:
                flags.FLAGS.config.to_dict()
            return positional
        except (AttributeError, KeyError) as error:
            sys.exit(_fail(unknown_field(error), EXIT_MISTAKE))
        except Exception as error:  # a config file is a program that can raise anything
            sys.exit(_fail(one_line(error), EXIT_MISTAKE))

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax logs every file that it writes
        try:
            processes.join_processes()
            keep_compiled_programs()
            main(argv[1:])
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has ended, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(_fail(*describe_error(error, _workdir())))

    write_any_text()
    for name in KEY_FLAGS:  # so that --help shows them
        if name in flags.FLAGS:
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    app.run(guarded, flags_parser=parse)


def write_any_text() -> None:
    """Makes a terminal that lacks a character print its code instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def keep_compiled_programs() -> None:
    """Makes JAX store programs that took a second or more to compile, so that the next command can load them.

    JAX's own variables take precedence: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false. With several
    processes nothing is stored by default: only the first would load programs, and wait while the others compile.
    """
    if jax.config.jax_compilation_cache_dir is None and jax.process_count() == 1:
        try:
            caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
            (caches / "rdjax").mkdir(parents=True, exist_ok=True)
        except (RuntimeError, KeyError, OSError):  # a container's user may have no home, or none to write to
            return
        jax.config.update("jax_compilation_cache_dir", str(caches / "rdjax" / machine_name()))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


def machine_name() -> str:
    """Returns the same name for machines that can run each other's programs; different CPUs may share a home folder."""
    found = CPU_INFO.exists() and re.search(r"^(?:flags|Features)\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    features = " ".join(sorted(found[1].split())) if found else platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def no_arguments(argv: list[str]) -> None:
    """Refuses positional arguments, which are most often flags without their dashes."""
    if argv:
        raise UserError(f"the argument {argv[0]!r} is not understood; accepted: --flag=value, --config.<field>=<value>")


def _workdir() -> pathlib.Path | None:
    """Returns the folder of --workdir, where the command has this flag and it is given."""
    given = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else None
    return pathlib.Path(os.path.expanduser(given)) if given else None  # noqa: PTH111 (raises nothing without a home)


def _fail(line: str, status: int) -> int:
    """Prints an error in one line, and returns the exit status."""
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return status
