"""Files that appear complete or not at all, alone or several together."""

import os
import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path


_in_use: set[Path] = set()  # temporary files of this process


@contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """A temporary path beside `path`; what the block writes there takes its place if it ends without an error."""
    with atomic_write_all([path]) as (temporary,):
        yield temporary


@contextmanager
def atomic_write_all(paths: Sequence[Path], *, remove: Iterable[Path] = ()) -> Generator[list[Path]]:
    """A temporary path beside each of `paths`; if the block ends without an error, all of them take their places.

    An error, also one while they take their places, leaves every file as it was. Temporary files of processes
    that no longer run on this machine are removed.

    Args:
      paths: the files, in the order in which they take their places.
      remove: files that are removed once the others are in place.

    Raises:
      OSError: a file cannot be written, or something else is in its place.
    """
    temporaries: list[Path] = []
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            temporaries.append(_temporary(path))
            _in_use.add(temporaries[-1])
            temporaries[-1].touch(exist_ok=False)
        # The mode of any new file of the user: a library that writes may replace the file by one of its own.
        modes = [temporary.stat().st_mode for temporary in temporaries]
        yield temporaries
        for temporary, mode in zip(temporaries, modes, strict=True):
            temporary.chmod(mode)
        _exchange(list(zip(temporaries, paths, strict=True)), [path for path in remove if path.exists()])
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
            _in_use.discard(temporary)


def _exchange(moves: Sequence[tuple[Path, Path]], remove: Sequence[Path]) -> None:
    """Moves every new file to its place and removes others; an error puts back what was there."""
    saved: dict[Path, Path] = {}
    arrived: list[Path] = []
    try:
        if len(moves) + len(remove) > 1:  # a single move needs no way back
            for path in (*(path for _, path in moves), *remove):
                if path.is_file():
                    saved[path] = _temporary(path)
                    _in_use.add(saved[path])
                    _link_or_copy(path, saved[path])
        for temporary, path in moves:
            temporary.replace(path)
            arrived.append(path)
        for path in remove:
            path.unlink()
    except BaseException:
        for path, copy in saved.items():
            if copy.exists():
                copy.replace(path)
        for path in arrived:
            if path not in saved:
                path.unlink()
        raise
    finally:
        for copy in saved.values():
            copy.unlink(missing_ok=True)
            _in_use.discard(copy)


def _link_or_copy(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # a file system without hard links
        copy.write_bytes(path.read_bytes())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Removes what a killed process left beside `path`."""
    prefix = f".{path.name}."
    try:
        others = list(path.parent.iterdir())
    except PermissionError:  # a folder may be writable and not readable
        return
    for other in others:
        if other.name.startswith(prefix) and other.suffix == ".tmp" and other not in _in_use:
            pid = other.name.removeprefix(prefix).partition("-")[0]
            if pid.isdigit() and (int(pid) == os.getpid() or not _is_running(int(pid))):
                other.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # there, signal 0 does not ask but is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True
