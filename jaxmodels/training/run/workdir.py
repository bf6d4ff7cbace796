"""The folder of a run: its settings, its log, and whether it can be continued."""

import contextlib
import datetime
import json
import os
import platform
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxmodels.atomic import atomic_write
from jaxmodels.json_values import as_json
from jaxmodels.training.experiment import Experiment, differences
from jaxmodels.training.run.checkpoints import read_json
from jaxmodels.training.run.lock import Lock, require_free


PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Workdir:
    """Reads and writes the small files of a run; `writes` is False on all processes but the first."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.run_file = folder / "run.json"
        self.metrics_file = folder / "metrics.jsonl"
        self.results_file = folder / "results.json"
        self.checkpoints = folder / "checkpoints"
        self.model = folder / "model"
        self.report = folder / "report.html"
        self.tensorboard = folder / "tensorboard"
        self.lock_file = folder / ".lock"

    def check(self, experiment: Experiment, data: dict[str, Any]) -> None:
        """Refuses to overwrite a run, and to continue a run with other settings. Writes nothing.

        Raises:
          ValueError: the folder holds a run and `resume` is off, or its settings or data differ, or it has gone
            further than `steps`.
          NotADirectoryError, PermissionError: no such folder can be made or written into.
          IsADirectoryError: a folder has the name of one of the run's files.
        """
        _require_writable(self.folder)
        self._require_kinds()
        if not self.run_file.exists():
            if self.checkpoints.exists() or self.metrics_file.exists():
                raise ValueError(
                    f"{self.folder} holds checkpoints or metrics but no {self.run_file.name}, which says what "
                    "they belong to; choose another --workdir"
                )
            return
        if not experiment.resume:
            raise ValueError(
                f"{self.folder} already holds a run; pass --resume to continue it, or choose another --workdir"
            )
        before = self.read_run()
        lines = differences(before["experiment"], experiment.describe())
        lines += [f"data.{line}" for line in differences(_content(before["data"]), _content(as_json(data)))]
        if lines:
            listed = "\n  ".join(lines)
            raise ValueError(
                f"{self.folder} holds a run with other settings or data; resume it with the same, or start "
                f"another in its own --workdir:\n  {listed}"
            )
        reached = max(self._saved_steps(), default=0)
        if reached > experiment.steps:
            raise ValueError(
                f"steps must be at least {reached}, which the run in {self.folder} has reached; "
                f"got steps={experiment.steps}"
            )

    def lock(self) -> contextlib.AbstractContextManager:
        """Keeps other runs out of the folder, which is made if it is not there."""
        if not self.writes:
            return contextlib.nullcontext()
        self.folder.mkdir(parents=True, exist_ok=True)
        return Lock(self.lock_file)

    def require_free(self) -> None:
        """ValueError says who holds the folder, if another run does."""
        if self.writes:
            require_free(self.lock_file)

    def begin(self, preset: str, experiment: Experiment, data: dict[str, Any]) -> list[str]:
        """Notes what is run, and adds this session to those before it; removes what a killed one left behind.

        Returns:
          What the last session was made with and this one is not, one line each.
        """
        if not self.writes:
            return []
        for folder in (self.folder, self.model):
            _remove_leftovers(folder)
        now = environment()
        before = self.read_run() if self.run_file.exists() else {}
        sessions = before.get("sessions", [before.get("environment", now)] if before else [])
        self._write(
            self.run_file,
            {
                "preset": preset,
                "experiment": experiment.describe(),
                "data": data,
                "environment": (before or {"environment": now}).get("environment"),  # of the beginning
                "sessions": [*sessions, now],
            },
        )
        last = sessions[-1] if sessions and isinstance(sessions[-1], dict) else {}
        return [
            f"the last session had {name} {last[name]}, this one has {now[name]}"
            for name in ("python", "device", *PACKAGES)
            if name in last and last[name] != now[name]
        ]

    def read_run(self) -> dict[str, Any]:
        """What `begin` noted; ValueError if the file holds anything else."""
        run = read_json(self.run_file)
        parts = run if isinstance(run, dict) else {}
        complete = isinstance(parts.get("experiment"), dict) and isinstance(parts.get("data"), dict)
        if not complete or not isinstance(parts.get("sessions", []), list):
            raise ValueError(
                f"{self.run_file} does not describe a run: it must be an object with the objects experiment and "
                "data; choose another --workdir"
            )
        return parts

    def truncate_metrics(self, step: int) -> None:
        """Drops the lines after `step`, whose steps will come again, and a last one that was cut short.

        Lines that are no metrics stay where they are: what they were is not known.
        """
        if not self.writes or not self.metrics_file.exists():
            return
        *lines, last = self.metrics_file.read_bytes().split(b"\n")
        if last and _parsed(last) is not None:  # complete except for its line break
            lines.append(last)
        kept = [line for line in lines if (found := _parsed(line)) is None or found["step"] <= step]
        with atomic_write(self.metrics_file) as path:
            path.write_bytes(b"".join(line + b"\n" for line in kept))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds a line; OSError says which file could not be written."""
        if self.writes:
            text = json.dumps(as_json(line), allow_nan=False) + "\n"
            with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(text)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line that is one of metrics: an object with at least `step` and `loss`."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_bytes().split(b"\n")
        return [line for line in map(_parsed, lines) if line is not None]

    def seconds(self) -> float:
        """Seconds that the steps of all sessions so far took."""
        return max((line.get("seconds") or 0.0 for line in self.read_metrics()), default=0.0)

    def write_results(self, results: dict[str, Any]) -> None:
        self._write(self.results_file, results)

    def _require_kinds(self) -> None:
        """Raises where a folder has the name of a file of the run, or a file that of a folder."""
        for path in (self.checkpoints, self.model, self.tensorboard):
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(f"{path} must be a folder or not exist; move the file away")
        for path in (self.run_file, self.metrics_file, self.results_file, self.report, self.lock_file):
            if path.is_dir():
                raise IsADirectoryError(f"{path} must be a file or not exist; move the folder away")

    def _saved_steps(self) -> list[int]:
        if not self.checkpoints.is_dir():
            return []
        return [int(path.name) for path in self.checkpoints.iterdir() if path.name.isdecimal()]

    def _write(self, path: Path, value: Any) -> None:
        if self.writes:
            text = json.dumps(as_json(value), indent=1, allow_nan=False) + "\n"
            with naming(path), atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")


class UnwritableFile(OSError):
    """The message names the file of the run that could not be written."""


@contextmanager
def naming(path: Path) -> Generator[None]:
    """An OSError inside the block becomes an UnwritableFile."""
    try:
        yield
    except OSError as error:
        raise UnwritableFile(f"{path} could not be written ({error.strerror or error})") from error


def environment() -> dict[str, Any]:
    """Versions and device of a session."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "device": " ".join(dict.fromkeys([device.platform, device.device_kind])),  # a CPU's kind is "cpu"
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def _require_writable(folder: Path) -> None:
    """The folder, or the nearest one above it that exists, must be a folder into which one may write."""
    for path in (folder, *folder.absolute().parents):
        if path.is_dir():
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(f"workdir must be a folder that can be written; {path} cannot")
            return
        if path.exists() or path.is_symlink():
            raise NotADirectoryError(f"workdir must be a folder; {path} is a file")


def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of a process that was killed; call it under the lock."""
    if folder.is_dir():
        for path in folder.iterdir():
            if re.fullmatch(r"\..+\.(\d+-)?[0-9a-f]{8}\.tmp", path.name) and path.is_file():
                path.unlink(missing_ok=True)


def _content(data: Mapping[str, Any]) -> dict[str, Any]:
    """What of a description does not depend on where the data lies."""
    return {key: value for key, value in data.items() if key not in ("source", "skipped")}


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    found = as_json(found)  # an earlier release wrote NaN
    numbers = all(_is_number(value) or value is None for value in found.values())
    if not numbers or not isinstance(found.get("step"), int) or "loss" not in found:
        return None
    return found


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63  # larger ones have no place in an array
    return isinstance(value, float)
