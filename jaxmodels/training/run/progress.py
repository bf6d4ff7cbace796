"""Messages and progress on the console: a bar on a terminal, plain lines elsewhere."""

import errno
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


SECONDS_BETWEEN_LINES = 5
# Columns that a terminal must have for a bar and one, two or three numbers about the speed.
WIDTHS = (72, 110, 150)
MOST_ITEMS = 12  # items of a list that are printed


class PersistentConsole(Console):
    """A console that never ends the program: rich's own exits when the reader of a pipe has gone."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "the reader of the output has gone")


class Reporter:
    """Prints messages and the progress of a run; nothing at all unless `active`, which is the first process.

    A message never ends a run: characters that the console cannot encode are replaced, and the run continues when
    the terminal is closed.
    """

    def __init__(self, console: Console, *, active: bool = True) -> None:
        self.console = console
        self.active = active
        self.bar: Progress | None = None
        self.last_line = 0.0  # when the last plain line was printed

    def print(self, message: str) -> None:
        if not self.active:
            return
        encoding = self.console.encoding or "utf-8"
        message = message.encode(encoding, "replace").decode(encoding)
        try:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)
        except (OSError, ValueError):  # the terminal or the pipe is closed
            self.active = False

    def start(self, step: int, steps: int) -> None:
        """Begins to show progress; `step` is the last one that is done."""
        self.steps = steps
        self._mark(step)
        if not self.active or not self.console.is_terminal:
            return
        self.bar = Progress(*self._columns(), console=self.console, transient=True)
        self.bar.start()
        self.progress = self.bar.add_task("compiling", total=steps, completed=step)

    def first_step_done(self, step: int) -> None:
        """From here on the time left is estimated, without that of the compilation."""
        self._mark(step)
        if self.bar is not None:
            self.bar.reset(self.progress, total=self.steps, completed=step, description="")

    def advance(self, step: int) -> None:
        if self.bar is not None:
            self.bar.update(self.progress, completed=step)

    def report_progress(self, line: Mapping[str, float], speed: Sequence[str]) -> None:
        """Loss and speed: on a terminal the bar shows them, elsewhere a line with the time that is left.

        Args:
          line: of metrics.jsonl.
          speed: what is known of it, the most important first. A terminal shows what it has room for.
        """
        if not self.active:
            return
        shown = [f"loss {line['loss']:.4f}"]
        if self.bar is not None:
            parts = [part for part, width in zip(speed, WIDTHS, strict=False) if self.console.width >= width]
            self.bar.update(self.progress, description="  ".join(shown + parts))
            return
        if time.monotonic() - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = time.monotonic()
        step = int(line["step"])
        done = step - self.first_step
        left = (time.monotonic() - self.began) / done * (self.steps - step) if done else None
        parts = [f"step {step}/{self.steps}", *shown, *speed]
        self.print("  ".join(parts + ([f"{duration(left)} left"] if left is not None else [])))

    def stop(self) -> None:
        bar, self.bar = self.bar, None
        if bar is not None:
            try:
                bar.stop()
            except (OSError, ValueError):
                self.active = False

    def _mark(self, step: int) -> None:
        self.first_step, self.began = step, time.monotonic()

    def _is_wide(self) -> bool:
        return self.console.width >= WIDTHS[0]

    def _columns(self) -> Sequence[ProgressColumn]:
        """The step comes first and is never cut."""
        bar = [BarColumn(bar_width=None)] if self._is_wide() else []
        return [
            MofNCompleteColumn(),
            *bar,
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
        ]


def duration(seconds: float) -> str:
    """Seconds as "2:05" or "1:02:05"."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def as_text(value: Any) -> str:
    """A setting or a fact about the data as people write it; long lists are cut."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        more = [f"… ({len(value):,} in all)"] if len(value) > MOST_ITEMS else []
        return ", ".join([*map(as_text, value[:MOST_ITEMS]), *more]) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def describe_data(data: Mapping[str, Any]) -> dict[str, str]:
    """What `Task.describe` says about the data, as text: {what: value}."""
    return {
        key.replace("_", " "): " × ".join(map(str, value)) if key == "image_shape" else as_text(value)
        for key, value in data.items()
    }
