"""What every command shares: absl flags, compiled programs on disk, and errors in one line with exit status 2."""

import hashlib
import os
import pathlib
import platform
import re
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from rdjax.errors import UserError
from rdjax.parallel import processes

CACHE_BYTES = 2 * 2**30  # of compiled programs; those not used for longest go first
CPU_INFO = pathlib.Path("/proc/cpuinfo")


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the command line and calls `main` with the positional arguments.

    Bad flags and `UserError` end with one line on standard error and exit status 2, without a traceback.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            positional = flags.FLAGS(argv)
            # ml_collections tells of a config file that is not there only when the config is first read.
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:
                flags.FLAGS.config.to_dict()
            return positional
        # ml_collections raises the built-in ones for an unknown field; a config file is a program and raises anything.
        except Exception as error:
            sys.exit(_fail(error))

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it writes
        try:
            processes.join_processes()
            keep_compiled_programs()
            main(argv[1:])
        except UserError as error:
            sys.exit(_fail(error))

    app.run(guarded, flags_parser=parse)


def keep_compiled_programs() -> None:
    """Has JAX keep what took a second or more to compile, for the next command that wants the same.

    JAX's own variables go first: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false. Several processes keep
    nothing by themselves: only the first would, and the others would compile while it waits for them.
    """
    if jax.config.jax_compilation_cache_dir is None and jax.process_count() == 1:
        caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "rdjax" / machine_name()))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


def machine_name() -> str:
    """A name for machines that can run each other's programs: a home may be shared by CPUs that cannot."""
    features = (
        re.search(r"^(?:flags|Features)\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE) if CPU_INFO.exists() else None
    )
    said = " ".join(sorted(features[1].split())) if features else platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def no_arguments(argv: list[str]) -> None:
    """Refuses positional arguments, which are most often flags that lack their dashes."""
    if argv:
        raise UserError(f"the argument {argv[0]!r} is not understood; accepted: --flag=value, --config.<field>=<value>")


def _fail(error: Exception) -> int:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2
