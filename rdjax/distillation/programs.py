"""Compiles programs in the background, while the main thread does something else."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from jax.sharding import Mesh

from rdjax.parallel.mesh import device_of

COMPILED_AT_ONCE = 2  # compiling a large program takes host memory, too


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
