"""Messages and progress on the console: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


SECONDS_BETWEEN_LINES = 5


class Reporter:
    """Prints messages and the progress of a run; nothing at all unless `active`, which is the first process."""

    def __init__(self, console: Console, *, active: bool = True) -> None:
        self.console = console
        self.active = active
        self.bar: Progress | None = None
        self.printed = 0.0  # when the last plain line was

    def print(self, message: str) -> None:
        if self.active:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def start(self, step: int, steps: int) -> None:
        self.steps = steps
        self.first = step
        self.began = time.monotonic()
        if self.active and self.console.is_terminal:
            columns = (
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.progress = self.bar.add_task("compiling", total=steps, completed=step)

    def advance(self, step: int) -> None:
        if self.bar is not None:
            self.bar.update(self.progress, completed=step)

    def report_progress(self, line: Mapping[str, float], rate: float, unit: str) -> None:
        """A line of metrics: on a terminal the bar shows it, elsewhere it is printed with the time left."""
        if not self.active:
            return
        shown = f"loss {line['loss']:.4f}" + (f"  {rate:,.0f} {unit}/s" if rate else "")
        if self.bar is not None:
            self.bar.update(self.progress, description=shown)
            return
        if time.monotonic() - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = time.monotonic()
        step = int(line["step"])
        spent = time.monotonic() - self.began
        left = spent / max(step - self.first, 1) * (self.steps - step)
        print(f"step {step}/{self.steps}  {shown}  {minutes(left)} left", flush=True)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def minutes(seconds: float) -> str:
    """Hours, minutes and seconds as people write them."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def metrics_text(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
