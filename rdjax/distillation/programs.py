"""Compiles programs in the background, while the main thread does something else, and lets go of old ones."""

import contextlib
import functools
import gc
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rdjax.parallel.mesh import device_of

COMPILED_AT_ONCE = 2  # compiling a large program takes host memory, too
# Of Linux: a process's mappings of memory, one a line, and how many it may have.
MAPPINGS, MOST_MAPPINGS = pathlib.Path("/proc/self/maps"), pathlib.Path("/proc/sys/vm/max_map_count")


class Program(NamedTuple):
    """Describes a program: a jitted function with its static arguments bound, and its other arguments.

    Attributes:
      arguments: arrays, or their shapes.
    """

    function: functools.partial
    arguments: tuple[Any, ...]


@contextlib.contextmanager
def compiling(programs: Sequence[Program], mesh: Mesh) -> Iterator[None]:
    """Compiles programs in threads within the context; later calls with arguments of these shapes find them.

    On GPUs the first call compiles: the compiler there measures kernels, which other work would disturb.
    """
    if device_of(mesh).platform == "gpu":
        yield
        return

    def compile_one(program: Program) -> None:
        function = program.function
        function.func.lower(*program.arguments, **function.keywords).compile()

    pool = ThreadPoolExecutor(COMPILED_AT_ONCE)
    try:
        compiled = [pool.submit(compile_one, program) for program in programs]
        yield
        for each in compiled:
            each.result()
    finally:
        # After an error the user should read it at once.
        pool.shutdown(wait=False, cancel_futures=True)


def release_programs() -> None:
    """Lets go of all compiled programs where their mappings of memory come near to the most that a process may have.

    Each program has some, and a process that asks for more than 65,530 is aborted. Runs of ever new sizes in one
    process (several rules, a sweep, a notebook) would come to that.
    """
    if not (MAPPINGS.exists() and MOST_MAPPINGS.exists()):
        return
    with MAPPINGS.open("rb") as lines:
        count = sum(1 for _ in lines)
    if count > int(MOST_MAPPINGS.read_text(encoding="ascii")) // 2:
        jax.clear_caches()
        gc.collect()  # programs are in circles of references
