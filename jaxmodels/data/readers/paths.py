"""The files that a user points at: what is there, what may not be read, and what is wrong, told together."""

import os
import stat
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


LFS_MARK = b"version https://git-lfs.github.com/spec/"
LFS_POINTER = "it is a pointer of Git LFS without the content; run git lfs pull"
MOST_LISTED = 5  # problems that an error spells out; of the others it gives the number


def existing_path(path: str | os.PathLike[str]) -> Path:
    """The path, once it is known to lead somewhere.

    Raises:
        FileNotFoundError: it does not.
        PermissionError: a folder on the way may not be entered.
        ValueError: it leads to a device, a FIFO or a socket, which may be waited for or read for ever.
    """
    found = Path(path)
    try:
        if not str(path):  # what a shell makes of a variable that is not set
            raise FileNotFoundError
        with naming_permission(found):
            mode = found.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"path must be a file or folder that exists; got path={str(path)!r}, looked for in {str(Path.cwd())!r}"
        ) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(
            f"path must be a regular file or a folder; got path={str(path)!r}, which is {_kind(mode)}; "
            "write what it gives into a file first"
        )
    return found


def _kind(mode: int) -> str:
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return "a FIFO" if stat.S_ISFIFO(mode) else "a socket"


@contextmanager
def naming_permission(path: Path) -> Generator[None]:
    """Says which path may not be read and what to do about it, around code that reads it."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(
            f"path must be readable; got path={str(path)!r} and not enough permission; "
            "change its mode (chmod) or its owner, or read a copy"
        ) from error


@contextmanager
def naming_damage(path: Path, kind: str) -> Generator[None]:
    """Says which file is damaged, around code that lets a library read it."""
    try:
        with naming_permission(path):
            yield
    except PermissionError:
        raise
    except Exception as error:  # what libraries raise on damaged files is nowhere written down
        reason = LFS_POINTER if is_lfs_pointer(path) else str(error) or type(error).__name__
        raise ValueError(
            f"path must be a whole {kind}; got path={str(path)!r} ({reason}); make or download it again"
        ) from error


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file only says where Git LFS keeps the content."""
    try:
        if not path.is_file():  # a FIFO would be waited for
            return False
        with path.open("rb") as file:
            return file.read(len(LFS_MARK)) == LFS_MARK
    except OSError:
        return False


def visible_entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted by name, without hidden files and what a Mac adds to its archives."""
    with naming_permission(folder):
        return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name != "__MACOSX")


def list_problems(problems: Sequence[str]) -> str:
    """The first problems, each on a line of its own, and how many others there are."""
    rest = len(problems) - MOST_LISTED
    lines = [*problems[:MOST_LISTED], *([f"and {rest} more"] if rest > 0 else [])]
    return "".join(f"\n  {line}" for line in lines)


def displayed(name: str) -> str:
    r"""A file name as text: bytes that are no UTF-8 become \xff and the like."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def count_by_suffix(files: Sequence[Path], reason: str) -> tuple[str, ...]:
    """An entry of `skipped` for each kind of file that was left out."""
    counts = Counter(file.suffix.lower() for file in files)
    return tuple(
        f"{count} × {f'*{suffix}' if suffix else 'file without suffix'}: {reason}"
        for suffix, count in sorted(counts.items())
    )
