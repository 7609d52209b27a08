"""Traces a few updates of a stage, for TensorBoard or Perfetto."""

import pathlib

import jax

FIRST = 10  # the updates before compile programs and fill caches


class Profile:
    """Traces `count` updates from update `FIRST` on; none where `count` is 0."""

    def __init__(self, folder: pathlib.Path, count: int):
        self.folder, self.first, self.end = folder, FIRST, FIRST + count
        self.tracing, self.missing = False, count > 0

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self.missing:
            print(f"no trace: config.log.profile begins with update {FIRST}, which was not reached")

    def before(self, update: int) -> None:
        """Starts or ends the trace where update number `update` is next."""
        if update == self.first < self.end:
            jax.profiler.start_trace(str(self.folder))
            self.tracing, self.missing = True, False
        elif self.tracing and update >= self.end:
            self.stop()

    def stop(self) -> None:
        """Ends the trace if there is one, and writes it."""
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing = False
            print(f"wrote a trace to {self.folder}")
