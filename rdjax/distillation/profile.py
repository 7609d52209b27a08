"""Traces a few updates of a stage, for TensorBoard or Perfetto."""

import pathlib

import jax

FIRST = 10  # the updates before compile programs and fill caches


class Profile:
    """Traces `count` updates from update `FIRST` on; none where `count` is 0."""

    def __init__(self, folder: pathlib.Path, count: int):
        self.folder, self.first, self.end = folder, FIRST, FIRST + count
        self.tracing = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def before(self, update: int) -> None:
        """Starts or ends the trace where update number `update` is next."""
        if update == self.first < self.end:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True
        elif self.tracing and update >= self.end:
            self.stop()

    def stop(self) -> None:
        """Ends the trace if there is one, and writes it."""
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing = False
            print(f"wrote a trace to {self.folder}")
