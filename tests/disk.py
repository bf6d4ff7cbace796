"""What tests of files on a disk share: listings, a disk that is full, a user without rights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def full_disk(path: Path, arrays: object) -> None:
    """Takes the place of a function that writes a file."""
    path.write_bytes(b"the first half")
    raise OSError(28, "No space left on device", str(path))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Runs the block as another user, because root may read and write everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
