"""Files appear complete or not at all, alone or several together."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxmodels.atomic import atomic_write, atomic_write_all
from tests.disk import names


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path  # a move across file systems would not be atomic
    assert path.read_text() == "new"
    assert names(tmp_path) == ["note"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_text("old")
    with pytest.raises(error), atomic_write_all(paths) as temporaries:  # noqa: PT012
        for temporary in temporaries:
            temporary.write_text("new")
        raise error
    assert names(tmp_path) == ["a"]
    assert paths[0].read_text() == "old"


def test_files_come_and_go_together(tmp_path: Path) -> None:
    for name in ("a", "gone"):
        (tmp_path / name).write_text("old")
    remove = [tmp_path / "gone", tmp_path / "never there"]
    with atomic_write_all([tmp_path / "a", tmp_path / "b"], remove=remove) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "new"


def without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("prepare", [lambda monkeypatch: None, without_hard_links])
def test_a_place_that_is_taken_puts_the_others_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable
) -> None:
    prepare(monkeypatch)
    (tmp_path / "b").write_text("old")
    (tmp_path / "c").mkdir()
    paths = [tmp_path / name for name in "abc"]
    with pytest.raises(IsADirectoryError), atomic_write_all(paths) as temporaries:  # noqa: PT012
        for temporary in temporaries:
            temporary.write_text("new")
    assert names(tmp_path) == ["b", "c"]
    assert (tmp_path / "b").read_text() == "old"


def killed(path: Path) -> None:
    with atomic_write_all([path, path.with_name("other")]):
        os._exit(9)  # as SIGKILL: nothing is tidied up


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(tmp_path / "note",))
    process.start()
    process.join()
    left = names(tmp_path)
    assert len(left) == 2
    (tmp_path / ".note.mine.tmp").touch()
    with atomic_write(tmp_path / "note"):
        pass
    assert names(tmp_path) == sorted([".note.mine.tmp", "note", *(name for name in left if "other" in name)])


def test_what_a_running_process_writes_is_left_alone(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "note") as first:
        first.write_text("first")
        other = first.with_name(f".note.{os.getppid()}-0.tmp")
        other.touch()
        with atomic_write(tmp_path / "note") as second:
            second.write_text("second")
        assert first.exists()
        assert other.exists()
    assert (tmp_path / "note").read_text() == "first"


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    with atomic_write(tmp_path / "note") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "note").read_text() == "new"
