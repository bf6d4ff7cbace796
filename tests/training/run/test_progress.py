"""What a run prints while it trains."""

import io
import os
from typing import Any

import pytest
from rich.console import Console

from jaxmodels.training.run import progress
from jaxmodels.training.run.progress import PersistentConsole, Reporter, as_text, describe_data


SPEED = ["1,234 images/s", "1.0 of 9.0 ms waiting for data", "3 TFLOP/s"]


def terminal(width: int) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_the_step_is_shown_at_every_width(width: int) -> None:
    console = terminal(width)
    reporter = Reporter(console)
    reporter.start(0, 18_000)
    reporter.first_step_done(1)
    reporter.report_progress({"step": 120, "loss": 2.3456}, SPEED)
    reporter.advance(120)
    assert reporter.bar is not None
    reporter.bar.refresh()
    reporter.stop()
    assert "120/18000" in written(console)
    assert "loss 2.3456" in written(console)
    assert ("1,234 images/s" in written(console)) == (width >= 80)
    assert ("1.0 of 9.0 ms waiting for data  3 TFLOP/s" in written(console)) == (width >= 200)


def test_compilation_is_not_counted_in_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    reporter = Reporter(console)
    reporter.start(0, 101)
    now += 60  # compiling
    reporter.first_step_done(1)
    now += 10
    reporter.report_progress({"step": 11, "loss": 1.0}, SPEED)
    speed = "1,234 images/s  1.0 of 9.0 ms waiting for data  3 TFLOP/s"
    assert f"step 11/101  loss 1.0000  {speed}  1:30 left" in written(console)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_console_that_lacks_characters(encoding: str) -> None:
    raw = io.BytesIO()
    reporter = Reporter(Console(file=io.TextIOWrapper(raw, encoding=encoding), width=80))
    reporter.print("8 × cpu, class 猫, \udcff")
    assert reporter.active
    assert raw.getvalue().decode(encoding).startswith("8 × cpu" if encoding != "ascii" else "8 ? cpu")


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_closed_terminal_does_not_end_the_run(is_terminal: bool) -> None:
    reporter = Reporter(Console(file=Closed(), force_terminal=is_terminal, width=80))
    reporter.print("one")
    reporter.start(0, 10)
    reporter.report_progress({"step": 1, "loss": 1.0}, [])
    reporter.stop()
    reporter.print("two")
    assert not reporter.active


def test_a_reader_that_has_gone_does_not_end_the_run() -> None:
    """As in `jaxmodels train … | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as pipe:
        reporter = Reporter(PersistentConsole(file=pipe))
        reporter.print("one")
        assert not reporter.active
        reporter.print("two")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # the message that is left goes there


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["red", "green"], "red, green"),
        (tuple(range(20)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (20 in all)"),
        ([], "none"),
        (True, "yes"),
        (None, "–"),
        (12345, "12,345"),
        (0.5, "0.5"),
    ],
)
def test_values_as_people_write_them(value: Any, text: str) -> None:
    assert as_text(value) == text


def test_description_of_the_data() -> None:
    data = {"image_shape": [32, 32, 3], "classes": ["a", "b"], "flip": False}
    assert describe_data(data) == {"image shape": "32 × 32 × 3", "classes": "a, b", "flip": "no"}
