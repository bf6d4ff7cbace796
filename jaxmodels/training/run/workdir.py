"""The folder of a run: what it was started with, its log, and whether it may be gone on with."""

import datetime
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxmodels.atomic import atomic_write
from jaxmodels.training.experiment import Experiment, differences
from jaxmodels.training.run.checkpoints import read_json


class Workdir:
    """Reads and writes the small files of a run; `writes` is False on all processes but the first."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.run_file = folder / "run.json"
        self.metrics_file = folder / "metrics.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.model = folder / "model"
        self.report = folder / "report.html"
        self.tensorboard = folder / "tensorboard"

    def check(self, experiment: Experiment, data: dict[str, Any]) -> None:
        """Refuses to overwrite a run, and to go on with a run under other settings.

        Raises:
          ValueError: the folder holds a run and `resume` is off, or its settings or data differ.
          NotADirectoryError: there is a file of that name.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"workdir must be a folder; {self.folder} is a file")
        if not self.run_file.exists():
            if self.checkpoints.exists() or self.metrics_file.exists():
                raise ValueError(
                    f"{self.folder} holds checkpoints or metrics but no {self.run_file.name}, which says what "
                    "they belong to; choose another --workdir"
                )
            return
        if not experiment.resume:
            raise ValueError(
                f"{self.folder} already holds a run; pass --resume to go on with it, or choose another --workdir"
            )
        before = read_json(self.run_file)
        lines = differences(before["experiment"], experiment.describe())
        lines += [f"data.{line}" for line in differences(before["data"], data)]
        if lines:
            listed = "\n  ".join(lines)
            raise ValueError(
                f"{self.folder} holds a run with other settings; resume it with the same, or start another "
                f"in its own --workdir:\n  {listed}"
            )

    def begin(self, preset: str, experiment: Experiment, data: dict[str, Any]) -> None:
        """Notes what is run; a continuation replaces the note, whose essential part is the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(
            self.run_file,
            {
                "preset": preset,
                "experiment": experiment.describe(),
                "data": data,
                "environment": environment(),
            },
        )

    def truncate_metrics(self, step: int) -> None:
        """Drops the lines after `step`, and one that was cut short: their steps will come again."""
        if not self.writes or not self.metrics_file.exists():
            return
        lines = [line for line in self.read_metrics() if line["step"] <= step]
        with atomic_write(self.metrics_file) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def append_metrics(self, line: dict[str, Any]) -> None:
        if self.writes:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole line."""
        lines = []
        for text in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break  # a killed process ends in the middle of a line
        return lines

    def write_results(self, results: dict[str, Any]) -> None:
        self._write(self.folder / "results.json", results)

    def _write(self, path: Path, value: Any) -> None:
        if self.writes:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """What the run was made with."""
    versions = {
        name: metadata.version(name)
        for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    }
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        **versions,
    }
