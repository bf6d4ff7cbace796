"""Runs the measurement: which cells there are, a process for each measurement, one result for each cell."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

from benchmarks.pairs import FOLDER, PAIRS
from benchmarks.workload import BenchmarkPair, Size
from jaxmodels.benchmark.cells import cell_of
from jaxmodels.benchmark.kinds import IMPLEMENTATIONS, Device, Implementation, Mode, Precision
from jaxmodels.benchmark.machine import ROOT, Failure, cores
from jaxmodels.benchmark.processes import (
    PROCESS_TIMEOUT,
    answer_of,
    environment_of,
    last_error,
    require_agreement,
)
from jaxmodels.benchmark.rows import Cell
from jaxmodels.benchmark.worker import Job
from jaxmodels.models import ModelName


ReportProgress = Callable[[str, int, int | None], None]  # what is done, number of finished cells, of all


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
      models, sizes, modes, precisions: the rows are all their combinations.
      implementations: the columns. torchax is left out where it cannot be imported; the results give the reason.
      rounds: how often every implementation is timed in a row.
      alone: also measure first call and memory, in processes that hold one implementation.
      curves: also measure the scaling curves.
      budget: seconds that the whole run may take; see `benchmarks.budget`.
      device, threads: where all implementations run, and how many cores each may use.
      attention: JAX's attention kernel in bfloat16, see `jaxmodels.nn.attend`.
    """

    models: tuple[ModelName, ...]
    sizes: tuple[Size, ...]
    modes: tuple[Mode, ...] = ("forward", "train")
    precisions: tuple[Precision, ...] = ("float32",)
    implementations: tuple[Implementation, ...] = IMPLEMENTATIONS
    rounds: int = 15
    alone: bool = True
    curves: bool = False
    budget: float | None = None
    device: Device = "cpu"
    threads: int = os.cpu_count() or 1
    attention: Literal["auto", "xla", "cudnn"] = "auto"

    def __post_init__(self) -> None:
        for name in ("models", "sizes", "modes", "precisions", "implementations"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must name one or more, each once; got {' '.join(given) or 'none'}")
        if self.rounds < 2:
            raise ValueError(f"rounds must be at least 2, for quartiles; got {self.rounds}")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise ValueError(f"budget must be a number of seconds above 0; got {self.budget:g}")
        if self.attention == "cudnn" and (self.device != "cuda" or "bfloat16" not in self.precisions):
            raise ValueError(
                "attention must be 'auto' or 'xla' without --device cuda and bfloat16: cuDNN's kernel needs both; "
                "got attention='cudnn'"
            )
        if not 1 <= self.threads <= cores():
            raise ValueError(
                f"threads must be between 1 and {cores()}, the cores this process may use; got {self.threads}"
            )


def torchax_absence() -> str | None:
    """Why torchax cannot take part, or None if it can."""
    try:
        versions = f"torchax {metadata.version('torchax')} with torch {metadata.version('torch')}"
    except metadata.PackageNotFoundError:
        return "not installed"
    program = "import torchax; torchax.default_env()"
    probe = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return f"{versions}: {last_error(probe.stderr)}" if probe.returncode else None


def present(plan: Plan) -> tuple[Implementation, ...]:
    """The plan's implementations that can take part, eager first; ValueError if there is none."""
    absence = torchax_absence() if "torchax" in plan.implementations else None
    chosen = tuple(
        i for i in IMPLEMENTATIONS if i in plan.implementations and (i != "torchax" or absence is None)
    )
    if not chosen:
        raise ValueError(f"implementations must name one besides torchax, which is missing: {absence}")
    return chosen


def jobs(plan: Plan, implementations: tuple[Implementation, ...]) -> list[Job]:
    """The jobs that time the rows, then those that time the points of the curves."""
    common: dict[str, Any] = {
        "implementations": implementations,
        "threads": plan.threads,
        "device": plan.device,
    }
    cells = [
        Job(
            target=_file_of(m),
            size=s,
            mode=mode,
            precision=p,
            rounds=plan.rounds,
            time_again=True,
            attention=plan.attention if p == "bfloat16" else "auto",
            **common,
        )
        for p in plan.precisions
        for s in plan.sizes
        for m in plan.models
        for mode in plan.modes
    ]
    points = [
        Job(target=_file_of(m), size="medium", mode="forward", rounds=5, point=i, **common)
        for m in plan.models
        for i in range(len(PAIRS[m].curve.points))
        if plan.curves
    ]
    pair = tuple(name for name in ("eager", "jax") if name in implementations)
    return cells + [replace(job, implementations=pair) for job in points]


def measure(
    plan: Plan, folder: Path, report_progress: ReportProgress
) -> Iterator[tuple[Job, list[dict[str, Any]]]]:
    """Measures row after row; yields the job and its cells, one for each implementation.

    Args:
      plan: what to measure.
      folder: an empty one, for weights, compilation caches and the files of the processes.
      report_progress: is called before every measurement.

    Raises:
      Disagreement: two implementations do not compute the same. Nothing is timed then.
      Failure: a process ended with an error, which the message quotes. If only torchax fails, its cell stays empty.
    """
    planned = jobs(plan, present(plan))
    for number, job in enumerate(planned):
        job = with_files(job, folder)
        alone: dict[Implementation, dict[str, Any]] = {name: {} for name in job.implementations}
        if plan.alone:
            for name in job.implementations:
                report_progress(f"{job_name(job)}: first call and memory of {name}", number, len(planned))
                single = replace(job, implementations=(name,), time_again=False)
                try:
                    alone[name] = run_process(single, folder, f"{number}-{name}")
                except Failure as error:
                    if name != "torchax":
                        raise
                    alone[name] = {"failure": last_error(str(error))}
        job = replace(job, implementations=tuple(n for n in alone if "failure" not in alone[n]))
        report_progress(f"{job_name(job)}: timing", number, len(planned))
        in_turn = run_process(job, folder, f"{number}-all") if len(job.implementations) > 1 else None
        if in_turn is not None:
            check_agreement(job, in_turn["errors"])
        yield job, [cell(job, name, alone, in_turn) for name in alone]


def with_paths(job: Job, folder: Path) -> Job:
    """The job with the path of its weights and inputs."""
    return replace(job, files=str(folder / f"{pair_of(job).name}-{job.size}-{job.point}"))


def with_files(job: Job, folder: Path) -> Job:
    """The job with its weights and inputs written into the folder."""
    job = with_paths(job, folder)
    assert job.files is not None
    if not Path(job.files).exists():
        pair_of(job).write_files(Path(job.files), cast("Size", job.size), job.point)
    return job


def run_process(
    job: Job,
    folder: Path,
    name: str,
    *,
    module: str = "jaxmodels.benchmark.worker",
    timeout: float = PROCESS_TIMEOUT,
) -> dict[str, Any]:
    """Runs one job in a process of its own and returns what it measured.

    Args:
      job: what the process is told to do.
      folder: for its files and caches.
      name: of its files.
      module: the program.
      timeout: seconds, after which the process and those that it started are stopped.

    Raises:
      Stopped: the process took longer than `timeout`.
      Failure: the process ended with an error.
    """
    request, answer = folder / f"{name}.job.json", folder / f"{name}.json"
    job.write(request)
    return answer_of(
        [sys.executable, "-m", module, str(request), str(answer)],
        answer,
        who=f"{job_name(job)} with {', '.join(job.implementations)}",
        environment=environment_of(folder, job.device, job.threads),
        timeout=timeout,
        cwd=ROOT,
    )


def check_agreement(job: Job, errors: dict[str, float]) -> None:
    """Raises Disagreement if an implementation differs from the first one by more than rounding explains."""
    advice = f"`jaxmodels compare {job.target}` finds where"
    require_agreement(job_name(job), errors, job.precision, advice=advice)


def cell(
    job: Job,
    name: Implementation,
    alone: dict[Implementation, dict[str, Any]],
    in_turn: dict[str, Any] | None,
) -> Cell:
    """One cell of results.json; see `jaxmodels.benchmark.cells`."""
    pair = pair_of(job)
    row = {"model": pair.name, "mode": job.mode, "size": str(job.size), "precision": job.precision}
    found = cell_of(row, name, alone, in_turn, last=job.implementations[-1])
    if job.point is not None:
        found |= {"curve": pair.curve.axis, "at": pair.curve.points[job.point]}
    return found


def job_name(job: Job) -> str:
    """The job in messages: model, size or point of the curve, mode, precision."""
    pair = pair_of(job)
    size = job.size if job.point is None else f"curve at {pair.curve.points[job.point]}"
    return f"{pair.name} {size} {job.mode} {job.precision}"


def pair_of(job: Job) -> BenchmarkPair:
    """The pair that a job measures."""
    return PAIRS[cast("ModelName", Path(job.target).stem)]


def _file_of(model: ModelName) -> str:
    return str(FOLDER / f"{model}.py")
