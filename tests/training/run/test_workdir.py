"""The small files of a run: what is refused, what is kept, who may write."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxmodels.training.experiment import Experiment
from jaxmodels.training.run.workdir import UnwritableFile, Workdir


DATA = {"source": "here", "examples": 40, "checksum": "0123"}


def experiment(workdir: Path, **changes: Any) -> Experiment:
    return Experiment(**{"workdir": workdir, "steps": 10, "batch_size": 8, "resume": True} | changes)


@pytest.fixture
def begun(tmp_path: Path) -> Workdir:
    """The folder of a run that has begun."""
    workdir = Workdir(tmp_path / "run")
    with workdir.lock():
        workdir.begin("toy", experiment(workdir.folder), DATA)
    return workdir


def test_checking_writes_nothing(tmp_path: Path) -> None:
    Workdir(tmp_path / "a" / "run").check(experiment(tmp_path / "a" / "run"), DATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checksum": "4567"}, r"data\.checksum: '0123' in the run, '4567' now"),
        ({"examples": 39}, r"data\.examples: 40 in the run, 39 now"),
    ],
)
def test_other_data(begun: Workdir, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"holds a run with other settings or data.*\n  {message}$"):
        begun.check(experiment(begun.folder), DATA | change)


def test_the_path_of_the_data_may_change(begun: Workdir, tmp_path: Path) -> None:
    begun.check(experiment(begun.folder, data=tmp_path / "moved"), DATA | {"source": "elsewhere"})


def test_a_run_is_not_made_shorter_than_it_is(begun: Workdir) -> None:
    (begun.checkpoints / "10").mkdir(parents=True)
    begun.check(experiment(begun.folder), DATA)
    with pytest.raises(
        ValueError, match=r"steps must be at least 10, which the run .* has reached; got steps=4"
    ):
        begun.check(experiment(begun.folder, steps=4), DATA)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", "null", "3", '{"experiment": null, "data": {}}', '{"experiment": {}, "data": []}', '{"ex'],
)
def test_a_run_file_that_says_nothing(begun: Workdir, content: str) -> None:
    begun.run_file.write_text(content)
    with pytest.raises(
        ValueError, match=r"run\.json (does not describe a run: it must be an object|is not JSON)"
    ):
        begun.check(experiment(begun.folder), DATA)


def test_nested_json(begun: Workdir) -> None:
    begun.run_file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"run\.json is not JSON"):
        begun.check(experiment(begun.folder), DATA)


def test_every_session_is_noted(begun: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxmodels.training.run import workdir as module

    first = begun.read_run()
    monkeypatch.setattr(module.metadata, "version", lambda name: "99.0")
    changes = begun.begin("toy", experiment(begun.folder), DATA)
    assert f"the last session had jax {first['environment']['jax']}, this one has 99.0" in changes
    run = begun.read_run()
    assert run["environment"] == first["environment"]
    assert [session["jax"] for session in run["sessions"]] == [first["environment"]["jax"], "99.0"]
    assert "cpu: cpu" not in begun.run_file.read_text()


def test_what_killed_processes_left_is_removed(begun: Workdir) -> None:
    begun.model.mkdir()
    left = [
        begun.folder / ".results.json.0123abcd.tmp",
        begun.model / ".model.safetensors.17-0123abcd.tmp",
    ]
    others = [begun.model / "notes.tmp", begun.model / "model.safetensors", begun.folder / ".a.tmp"]
    for path in [*left, *others]:
        path.touch()
    begun.begin("toy", experiment(begun.folder), DATA)
    assert [path.exists() for path in left] == [False, False]
    assert all(path.exists() for path in others)


GOOD = [{"step": step, "loss": 1.0 / step, "seconds": step / 2} for step in (1, 2, 3)]


def lines(workdir: Workdir) -> list[str]:
    return workdir.metrics_file.read_text().split("\n")


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "garb",
        "[1]",
        "3",
        '{"a": 1}',
        '{"step": "2", "loss": 1.0}',
        '{"step": 2}',
        '{"step": 2, "loss": "a"}',
        f'{{"step": 2, "loss": {10**400}}}',
        f'{{"step": {-(10**30)}, "loss": 1.0}}',
        "[" * 9999,
    ],
)
def test_a_bad_line_in_the_middle_costs_no_other(begun: Workdir, bad: str) -> None:
    one, two, three = map(json.dumps, GOOD)
    begun.metrics_file.write_text(f"{one}\n{bad}\n{two}\n{three}\n")
    begun.truncate_metrics(2)
    assert lines(begun) == [one, bad, two, ""]
    assert begun.read_metrics() == GOOD[:2]
    assert begun.seconds() == 1.0


def test_lines_with_numbers_that_are_not_finite(begun: Workdir) -> None:
    """JSON of Python and of an earlier release has them."""
    one, *_ = map(json.dumps, GOOD)
    begun.metrics_file.write_text(f'{one}\n{{"step": 2, "loss": NaN, "seconds": Infinity}}\n')
    assert begun.read_metrics() == [GOOD[0], {"step": 2, "loss": None, "seconds": None}]
    assert begun.seconds() == 0.5


def test_a_cut_last_line_is_dropped(begun: Workdir) -> None:
    one, two, _ = map(json.dumps, GOOD)
    begun.metrics_file.write_text(f"{one}\n{two[:9]}")
    begun.truncate_metrics(5)
    assert lines(begun) == [one, ""]
    begun.metrics_file.write_text(f"{one}\n{two}")  # whole, but for its line break
    begun.truncate_metrics(5)
    assert lines(begun) == [one, two, ""]


def test_what_is_not_finite_is_null(begun: Workdir) -> None:
    begun.append_metrics({"step": 1, "loss": float("nan"), "psnr": float("inf"), "b": np.float64(2)})
    begun.write_results({"test": {"psnr": float("-inf")}, "classes": ("a", "\udcff")})
    assert json.loads(begun.metrics_file.read_text()) == {"step": 1, "loss": None, "psnr": None, "b": 2.0}
    assert json.loads(begun.results_file.read_text())["test"] == {"psnr": None}


def test_a_full_disk_is_told_with_the_file(begun: Workdir) -> None:
    begun.metrics_file.symlink_to("/dev/full")
    with pytest.raises(
        UnwritableFile, match=r"metrics\.jsonl could not be written \(No space left on device\)"
    ):
        begun.append_metrics({"step": 1, "loss": 1.0})


def test_the_second_run_is_told_who_holds_the_folder(begun: Workdir) -> None:
    message = rf"in use by another run \(process {os.getpid()} on .*, since 2"
    with begun.lock(), pytest.raises(ValueError, match=message), Workdir(begun.folder).lock():
        pass
    with Workdir(begun.folder).lock():
        pass


def test_a_fresh_run_is_told_as_well_and_writes_nothing(begun: Workdir) -> None:
    before = begun.lock_file.read_text()
    begun.require_free()
    assert begun.lock_file.read_text() == before
    with begun.lock(), pytest.raises(ValueError, match=rf"in use by another run \(process {os.getpid()} on "):
        Workdir(begun.folder).require_free()
    begun.lock_file.unlink()
    begun.require_free()
    assert not begun.lock_file.exists()


@pytest.mark.parametrize("name", ["checkpoints", "model", "tensorboard"])
def test_a_file_in_the_place_of_a_folder(begun: Workdir, name: str) -> None:
    (begun.folder / name).touch()
    with pytest.raises(
        NotADirectoryError, match=rf"{name} must be a folder or not exist; move the file away"
    ):
        begun.check(experiment(begun.folder), DATA)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "results.json", "report.html", ".lock"])
def test_a_folder_in_the_place_of_a_file(begun: Workdir, name: str) -> None:
    (begun.folder / name).unlink(missing_ok=True)
    (begun.folder / name).mkdir()
    with pytest.raises(IsADirectoryError, match=rf"{name} must be a file or not exist; move the folder away"):
        begun.check(experiment(begun.folder), DATA)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from jaxmodels.training.run.lock import Lock\n"
        f"with Lock(Path({str(tmp_path / '.lock')!r})): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -9
    assert "process" in (tmp_path / ".lock").read_text()
    with Workdir(tmp_path).lock():
        pass


@pytest.mark.parametrize("folder", ["file", "file/run", "link"])
def test_no_folder_can_be_made_there(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"workdir must be a folder; .* is a file"):
        Workdir(tmp_path / folder).check(replace(experiment(tmp_path), workdir=tmp_path / folder), DATA)
