"""A run that ends in time: the most valuable rows first, and on a GPU all programs compiled before anything is timed.

Every row is one process in which all implementations take turns. A row that takes longer than what is left of the
budget is stopped, and it and the rows after it are listed as not reached.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.run import (
    PROCESS_TIMEOUT,
    Plan,
    ReportProgress,
    cell,
    check_agreement,
    job_name,
    jobs,
    last_error,
    present,
    run_process,
    with_files,
    with_paths,
)
from jaxmodels.benchmark import machine
from jaxmodels.benchmark.kinds import Implementation
from jaxmodels.benchmark.machine import Failure
from jaxmodels.benchmark.processes import Disagreement, Stopped
from jaxmodels.benchmark.rows import Cell
from jaxmodels.benchmark.worker import Job


NOT_REACHED = "not reached"
RESERVE = 10.0  # seconds for what is not measured: imports before it, tables and plots after it
COMPILING = 0.5  # the share of what is left that compiling beforehand may take
LANES = 10  # processes that compile side by side, at most; each of torch.compile's starts more
VALUE: dict[str, Sequence[str]] = {
    "precision": ("bfloat16", "float32"),
    "size": ("gpu", "medium", "small"),
    "mode": ("train", "forward"),
}
# Without these a row may still be worth its time: torchax lacks operators, and eager PyTorch needs the most memory.
DISPENSABLE: tuple[Implementation, ...] = ("torchax", "eager")


class Clock:
    """Counts down.

    Args:
      seconds: what the whole run may take.
      now: a clock.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds - min(RESERVE, seconds / 4)

    def left(self) -> float:
        """Seconds that are left for measuring."""
        return self._end - self._now()


def rows_by_value(plan: Plan) -> list[Job]:
    """The rows of a plan: bfloat16, large sizes and training first."""
    planned = [replace(job, count_flop=True) for job in jobs(replace(plan, curves=False), present(plan))]
    return sorted(planned, key=lambda job: [VALUE[name].index(getattr(job, name)) for name in VALUE])


def in_order(cells: Sequence[Cell], plan: Plan) -> list[Cell]:
    """Cells in the order of the tables, whichever were measured first."""
    fields: dict[str, Sequence[str]] = {
        "precision": plan.precisions,
        "size": plan.sizes,
        "model": plan.models,
        "mode": plan.modes,
    }
    return sorted(cells, key=lambda cell: [fields[name].index(cell[name]) for name in fields])


def prepare(rows: Sequence[Job], folder: Path, clock: Clock) -> dict[str, float]:
    """The machine's matrix products and, on a GPU, beside them the weights and inputs of all models."""
    first = rows[0]
    with ThreadPoolExecutor(max_workers=LANES) as pool:
        if first.device == "cuda":
            for job in {(job.target, job.size): job for job in rows}.values():
                pool.submit(_run, job, folder, clock.left(), "benchmarks.prepare")
        try:
            return machine.measured_peaks(first.device, folder, first.threads, timeout=clock.left())
        except Failure:
            return {}


def measure_within(
    rows: Sequence[Job], folder: Path, clock: Clock, report_progress: ReportProgress
) -> Iterator[tuple[Job, list[Cell], str | None]]:
    """Measures row after row while time is left.

    Args:
      rows: what is measured, in this order.
      folder: for weights, compilation caches and the files of the processes.
      clock: says when to stop.
      report_progress: is called before every row.

    Yields:
      For every row that was begun: the job, its cells, and None or why there are none.
    """
    fastest = 0.0
    compiled: dict[tuple[str, Implementation], float] = {}
    for number, job in enumerate(rows):
        if job.device == "cuda" and (number == 0 or job.precision != rows[number - 1].precision):
            report_progress(f"all programs in {job.precision}: first calls side by side", number, len(rows))
            compiled |= compile_side_by_side(
                [row for row in rows if row.precision == job.precision], folder, clock
            )
        began = clock.left()
        if began <= fastest:  # no row has taken less
            return
        report_progress(f"{job_name(job)}, {began:.0f} s left", number, len(rows))
        try:
            cells, trouble = _row(job, folder, clock, compiled), None
        except (Disagreement, Failure) as error:
            if isinstance(error, Stopped) and clock.left() <= 0:
                return
            cells, trouble = [], str(error)
        yield job, cells, trouble
        if cells:
            spent = began - clock.left()
            fastest = min(fastest, spent) if fastest else spent


def compile_side_by_side(
    rows: Sequence[Job], folder: Path, clock: Clock
) -> dict[tuple[str, Implementation], float]:
    """Seconds of the first calls of JAX and `torch.compile`, by row and implementation.

    All of them run at the same time. One that fails or takes too long is left to its row.
    """
    ends = clock.left() * (1 - COMPILING)
    singles = [
        replace(with_paths(job, folder), implementations=(name,), compile_only=True, time_again=False)
        for name in ("jax", "compile")
        for job in rows
        if name in job.implementations
    ]

    def first_call(single: Job) -> dict[str, Any]:
        return _run(single, folder, clock.left() - ends, "jaxmodels.benchmark.worker")

    with ThreadPoolExecutor(max_workers=LANES) as pool:
        found = list(pool.map(first_call, singles))
    return {
        (job_name(single), single.implementations[0]): answer["first_call_s"]
        for single, answer in zip(singles, found, strict=True)
        if answer
    }


def _run(job: Job, folder: Path, timeout: float, module: str) -> dict[str, Any]:
    """`run_process`; nothing if there is no time or the process fails."""
    name = f"{module}-{job_name(job)}-{job.implementations[0]}".replace(" ", "-")
    try:
        return run_process(job, folder, name, module=module, timeout=timeout) if timeout > 0 else {}
    except Failure:
        return {}


def _row(
    job: Job, folder: Path, clock: Clock, compiled: dict[tuple[str, Implementation], float]
) -> list[Cell]:
    """The cells of one row; an implementation without which the row succeeds has none but its error."""
    alone: dict[Implementation, dict[str, Any]] = {
        name: {"first_call_s": compiled[job_name(job), name]} if (job_name(job), name) in compiled else {}
        for name in job.implementations
    }
    job = with_files(job, folder)
    while True:
        try:
            timeout = min(clock.left(), PROCESS_TIMEOUT)
            in_turn = run_process(job, folder, f"{job_name(job)}-{len(job.implementations)}", timeout=timeout)
            break
        except Stopped:
            raise
        except Failure as error:
            culprit = next((name for name in DISPENSABLE if name in job.implementations), None)
            if culprit is None or len(job.implementations) == 2:
                raise
            alone[culprit] = {"failure": last_error(str(error))}
            job = replace(job, implementations=tuple(n for n in job.implementations if n != culprit))
    check_agreement(job, in_turn["errors"])
    return [cell(job, name, alone, in_turn) for name in alone]
