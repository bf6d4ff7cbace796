"""A trace of a few steps, for xprof or Perfetto."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import jax


class Profile:
    """Traces five steps after compilation, or the last ones of a session that is shorter.

    Args:
      folder: of the run; the trace is written into `profile` inside it.
      steps: how many steps the session has.
      active: False traces nothing.
    """

    def __init__(self, folder: Path, *, steps: int, active: bool) -> None:
        self.folder = folder
        self.first = min(10, steps)
        self.last = min(14, steps)
        self.active = active
        self.tracing = False

    @contextmanager
    def step(self, number: int) -> Generator[None]:
        """Surrounds step `number` of the session, counted from 1."""
        if self.active and number == self.first:
            jax.profiler.start_trace(str(self.folder / "profile"))
            self.tracing = True
        yield
        if number == self.last:
            self.stop()

    def stop(self) -> None:
        """Writes what was traced, also of a session that ends early."""
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()
