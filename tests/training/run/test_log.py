"""The clock of a run, and what is said about its speed."""

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from jaxmodels.training.chips import chip_of
from jaxmodels.training.run import log
from jaxmodels.training.run.log import Clock, Log
from jaxmodels.training.run.progress import Reporter
from jaxmodels.training.run.speed import Lap, Speed, with_prefix


def test_only_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    clock = Clock(3)
    now += 50  # compilation
    assert clock.restart(4) == 50
    now += 2
    with clock.paused():  # evaluation
        now += 7
    with clock.waiting():
        now += 1
    now += 1
    assert clock.lap(14) == (0.4, 0.1)
    now += 1
    assert clock.lap(14) is None  # no step since
    now += 3
    assert clock.lap(15) == (3, 0)
    assert clock.total == 7


SPEED = Speed(batch_size=8, unit="tokens", per_example=100, flop=3 * 10**12, peak=1e13, chip="H100")


def test_speed_of_a_lap() -> None:
    measured = SPEED.measured(Lap(step_seconds=0.5, wait_seconds=0.002))
    assert measured == {
        "examples_per_second": 16,
        "tokens_per_second": 1600,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.002,
        "flop_per_second": 6e12,
        "share_of_peak": 0.6,
    }
    assert SPEED.texts(measured) == [
        "1,600 tokens/s",
        "2.0 of 500.0 ms waiting for data",
        "6 TFLOP/s (60.0% of H100)",
    ]
    unknown = replace(SPEED, peak=None, chip="")
    measured = unknown.measured(Lap(step_seconds=0.5, wait_seconds=0))
    assert "share_of_peak" not in measured
    assert unknown.texts(measured)[2] == "6 TFLOP/s"


@pytest.mark.usefixtures("unchecked_types")
def test_a_share_above_one_is_said_and_not_given() -> None:
    """It is a wrong count or a wrong data sheet."""
    lines: list[dict[str, Any]] = []
    console = Console(file=StringIO(), width=200)
    workdir: Any = SimpleNamespace(seconds=lambda: 0.0, writes=True, append_metrics=lines.append)
    experiment = SimpleNamespace(tensorboard=False)
    run = Log(SimpleNamespace(experiment=experiment), workdir, Reporter(console), data={})  # ty: ignore[invalid-argument-type]
    run.reporter.start(0, 10)
    run.speed = SPEED
    for step, seconds in ((1, 0.29), (2, 0.31), (3, 0.1)):
        run.clock = Clock(step - 1)
        run.clock.lap = lambda step, seconds=seconds: Lap(seconds, 0)  # ty: ignore[invalid-assignment]
        run.reporter.last_line = 0
        run.metrics(step, {"loss": 1.0}, None)
    assert [line.get("share_of_peak") for line in lines] == [None, 0.9677, None]
    assert all("flop_per_second" in line for line in lines)
    said: Any = console.file
    text = said.getvalue()
    assert text.count("warning: 10.3 TFLOP/s would be 103% of what the data sheet of H100 allows") == 1
    assert text.count("(96.8% of H100)") == 1
    assert text.count("warning") == 1


@pytest.mark.parametrize(
    ("number", "text"), [(12.0, "12 "), (4.56e9, "4.56 G"), (3.9512e14, "395 T"), (2e15, "2 P")]
)
def test_numbers_with_prefixes(number: float, text: str) -> None:
    assert with_prefix(number) == text


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
    ],
)
def test_chips_by_the_name_of_their_device(kind: str, name: str | None) -> None:
    device: Any = SimpleNamespace(device_kind=kind)
    chip = chip_of(device)
    assert (chip and chip.name) == name
