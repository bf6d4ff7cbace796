"""Files appear complete or not at all."""

from pathlib import Path

from jaxmodels.atomic import atomic_write
from tests.disk import names


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path  # a move across file systems would not be atomic
    assert path.read_text() == "new"
    assert names(tmp_path) == ["note"]
