"""One run at a time in one folder."""

import datetime
import errno
import json
import os
import platform
from pathlib import Path
from typing import Any


class Lock:
    """Held while a run writes into its folder. The system releases it when the process ends, however it ends.

    Where the system or the file system has no locks, nothing is locked.

    Args:
      path: a file that says which process holds the lock.
      announce: write into the file that this process holds the lock.

    Raises:
      ValueError: on entering, if another process holds it; the message names the process.
    """

    def __init__(self, path: Path, *, announce: bool = True) -> None:
        self.path = path
        self.announce = announce
        self.file: Any = None

    def __enter__(self) -> "Lock":
        try:
            import fcntl
        except ModuleNotFoundError:  # Windows
            return self
        self.file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(self.file)
            self.__exit__()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ValueError(
                    f"{self.path.parent} is in use by another run ({holder}); wait for it, stop it, or choose "
                    "another --workdir"
                ) from error
            return self
        if not self.announce:
            return self
        self.file.truncate(0)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self.file.write(json.dumps({"process": os.getpid(), "host": platform.node(), "since": since}) + "\n")
        self.file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


def require_free(path: Path) -> None:
    """ValueError, as on entering a `Lock`, if another process holds it. Nothing is created."""
    if path.is_file():
        with Lock(path, announce=False):
            pass


def _read(file: Any) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "it does not say which"
