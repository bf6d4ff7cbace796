"""The measurement of the reader."""

from itertools import count

import pytest

from benchmarks import reader
from benchmarks.reader import Stretch, main, measure, row


def test_examples_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs a second, and a fifth of it busy, with every batch."""
    numbers, read = count(), []
    stream = (read.append(number) or number for number in numbers)
    monkeypatch.setattr(reader.time, "monotonic", lambda: float(len(read)))
    monkeypatch.setattr(reader.time, "process_time", lambda: len(read) / 5)
    stretches = measure(stream, batch_size=40, stretches=3, seconds=4)
    assert len(read) == reader.WARM_UP + 3 * 4
    for stretch in stretches:
        assert stretch.rate == 40
        assert stretch.cpu == pytest.approx(1 / 200)


def test_row() -> None:
    line = row("glom-emoji", [Stretch(20_000, 3e-5), Stretch(30_000, 2e-5), Stretch(25_000, 4e-5)])
    assert line.split() == ["glom-emoji", "25,000", "20,000", "to", "30,000", "30.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["glom-emjoi"],
            "there is no preset with data in the package 'glom-emjoi'; did you mean glom-emoji?",
        ),
        (["glom-readme"], "there is no preset with data in the package 'glom-readme'"),
        (["--stretches", "0"], "stretches must be an integer ≥ 1; got stretches=0"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
