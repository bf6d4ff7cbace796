"""Ratios, noise and verdicts of rows, the tables made of them, and results.json itself."""

import json
from pathlib import Path

import pytest

from jaxmodels.benchmark import report, rows
from tests.benchmarks.sample_results import cell, curve, results


def row(*cells: dict) -> rows.Row:
    (found,) = rows.rows(results(*cells))
    return found


def test_a_winner_a_loser_and_a_draw() -> None:
    faster, slower, level = (row(cell("eager", 10.0), cell("jax", t)).ratio("eager") for t in (8, 12, 10))
    assert (faster.verdict, slower.verdict, level.verdict) == ("ahead", "behind", "level")
    assert (str(faster), str(slower)) == ("**0.80 ± 0.00**", "1.20 ± 0.00")


def test_what_slows_a_whole_round_down_is_not_noise_of_the_ratio() -> None:
    disturbed = (1.0, 3.0, 1.0, 1.0, 3.0)
    ratio = row(cell("eager", 10.0, rounds=disturbed), cell("jax", 9.5, rounds=disturbed)).ratio("eager")
    assert ratio.noise < 1e-9
    other = (3.0, 1.0, 1.0, 3.0, 1.0)
    assert (
        row(cell("eager", 10.0, rounds=disturbed), cell("jax", 9.5, rounds=other)).ratio("eager").noise > 0.5
    )


def test_a_difference_no_larger_than_a_against_a_is_level() -> None:
    ratio = row(cell("eager", 10.0), cell("jax", 9.6, again_ms=9.6 * 1.06)).ratio("eager")
    assert ratio.verdict == "level"
    assert rows.Ratio(0.01, noise=1.2).verdict == "ahead"  # at most 0.022
    assert str(ratio) == "0.96 ± 0.06 (noise)"


def test_without_rounds_the_quartiles_are_the_noise() -> None:
    bare = [cell("eager", 10.0) | {"rounds_ms": [], "q1_ms": 9.0, "q3_ms": 11.0}, cell("jax", 9.5)]
    assert row(*bare).ratio("eager").noise == pytest.approx(0.1)


def test_missing_cells_leave_gaps() -> None:
    found = results(
        cell("eager", 10.0),
        cell("jax", 8.0),
        cell("jax", 30.0, mode="train"),
        cell("compile", None, mode="train"),
    )
    head, body = report.main_table(found)
    assert head[4:7] == ["JAX / eager", "JAX, ms", "eager, ms"]  # nothing was compiled
    assert body[0][4:7] == ["**0.80 ± 0.00**", "8.00 (7.92–8.08)", "10.00 (9.90–10.10)"]
    assert body[1][4:7] == ["–", "30.00 (29.70–30.30)", "–"]
    assert len(report.detail_table(found)[1]) == 4  # a first call is worth a line without times


def test_the_summary_counts_losers_as_plainly_as_winners_and_says_who_is_missing() -> None:
    found = results(
        *(
            cell(side, time, model=model)
            for model, ours in (("glom", 5.0), ("hourglass", 5.0), ("colt5", 20.0), ("mammut", 10.0))
            for side, time in (("eager", 10.0), ("jax", ours))
        ),
        absent={"torchax": "not installed"},
    )
    text = report.summary(found)
    assert "ahead in 2 of 4 rows, behind in 1, and within the noise in 1" in text
    assert "torchax is missing: not installed" in text
    assert report.summary(results(cell("jax", 1.0))) == "No two implementations were timed in the same row."


def test_arithmetic_is_set_against_the_machine() -> None:
    jax = cell("jax", 10.0, flop=2e9, flop_per_s=2e11)
    head, (line,) = report.detail_table(results(jax, gemm_flop_per_s={"float32": 4e11}))
    assert dict(zip(head, line, strict=True)) | {
        "GFLOP": "2.0",
        "GFLOP/s": "200",
        "of GEMM peak": "50%",
    } == dict(zip(head, line, strict=True))
    assert "MFU" not in head


def test_a_gpu_shows_utilisation_and_floor() -> None:
    jax = cell("jax", 10.0, size="gpu", precision="bfloat16", flop=4.95e12, flop_per_s=8.91e14)
    found = results(jax, floors={"glom": {"forward": 4.0}})
    found["environment"]["device"] = "NVIDIA H200"
    head, (line,) = report.detail_table(found)
    assert line[head.index("MFU") :] == ["90%", "4.0", "2.5"]
    jax["precision"] = "float32"  # the floor is one of bfloat16
    assert report.detail_table(found)[1][0][-2:] == ["–", "–"]


def test_everything_is_written_and_shown(tmp_path: Path) -> None:
    found = results(cell("eager", 10.0), cell("jax", 8.0, again_ms=8.1), curves=curve())
    rows.write(found, tmp_path)
    report.write_report(rows.read(tmp_path / "results.json"), tmp_path)
    names = {"results.json", "results.md", "report.html", "ratios.svg", "curve-glom.svg"}
    assert {path.name for path in tmp_path.iterdir()} == names
    text = (tmp_path / "results.md").read_text()
    assert "3 × 12" in text
    assert "![curve-glom](curve-glom.svg)" in text
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg ") == 2
    assert "<th>libraries, MB</th>" not in page  # nothing was measured of it
    assert "<th>first call, s</th>" in page
    assert "`" not in page.partition("</style>")[2]
    assert "<b>0.80\u00a0±\u00a00.01</b>" in page


def test_one_side_alone_has_a_report_without_ratios(tmp_path: Path) -> None:
    report.write_report(results(cell("jax", 8.0)), tmp_path)
    assert not (tmp_path / "ratios.svg").exists()
    assert "8.00 (7.92–8.08)" in (tmp_path / "results.md").read_text()


def test_an_interrupted_write_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write(results(cell("jax", 8.0)), tmp_path)
    before = (tmp_path / "results.json").read_text()

    def interrupted(path: Path, text: str, **_: object) -> None:
        path.write_bytes(text[:20].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows.write(results(), tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == before


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such results file: .*gone.json"):
        rows.read(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"environment": {}, "cells": [', "is damaged or not JSON"),
        ("[1]", 'is not a results file of this benchmark: "environment" or "cells" is missing'),
        (
            '{"environment": {}}',
            'is not a results file of this benchmark: "environment" or "cells" is missing',
        ),
        ('{"environment": {}, "cells": [{"model": "glom"}]}', r"damaged: cells\[0\] lacks mode, size"),
        ('{"environment": {}, "cells": [], "curves": [3]}', r"damaged: curves\[0\] lacks model, mode"),
    ],
)
def test_a_damaged_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        rows.read(tmp_path / "results.json")
    with pytest.raises(ValueError, match=r"is a folder; a results.json inside one is needed"):
        rows.read(tmp_path)


def test_the_contract_of_results_json(tmp_path: Path) -> None:
    """Other programs read these names."""
    rows.write(results(cell("jax", 8.0)), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    promised = {"model", "mode", "size", "precision", "implementation", "median_ms", "q1_ms", "q3_ms"}
    assert promised | {"first_call_s", "peak_mb"} <= set(found["cells"][0])
