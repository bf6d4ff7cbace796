"""`jaxmodels compare`: the five models, a user's pairs or captures; a table, a report, an exit status."""

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from jaxmodels.compare.captures.files import INDEX_FILE
from jaxmodels.compare.captures.judgement import judge
from jaxmodels.compare.formats import Format, show, stdout_for
from jaxmodels.compare.inference.maps import read_map
from jaxmodels.compare.noise import DType
from jaxmodels.compare.outcome import Outcome, failure_of
from jaxmodels.compare.precision import ReducedPrecisionError
from jaxmodels.compare.report import write
from jaxmodels.compare.result import Result


CAPTURE_SUFFIX = ".capture"
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Job:
    """One comparison that was asked for.

    Attributes:
      name: what the report calls it.
      compare: does it; it gets a function that reports progress.
      folder: that of the user's file.
    """

    name: str
    compare: Callable[[Progress], Result]
    folder: Path | None = None


def run(
    targets: Sequence[str],
    *,
    checkpoint: Path | None = None,
    config: dict[str, Any] | None = None,
    steps: int = 3,
    dtype: DType = "float32",
    mode: Literal["eval", "train"] = "eval",
    optimizer: Literal["sgd", "adam", "adamw", "lion", "adafactor"] | None = None,
    seed: int = 0,
    map_file: Path | None = None,
    output: Path | None = None,
    output_format: Format = "text",
) -> int:
    """Compares and prints.

    Args:
      targets: names of models and files with a `pair()`, or folders of captures; all five models where there is none.
      checkpoint, config: weights of one of the models.
      steps: optimiser steps of the training run.
      dtype, mode: the compared type; evaluation or training mode.
      optimizer: of the steps, compared as well; AdamW, and no comparison, where none is named.
      seed: of fresh weights.
      map_file: of the table of a user's pair; see `map_files.with_map`. Of captures, it must be there.
      output: the folder of the report.
      output_format: what is printed; see `formats.show`.

    Returns:
      The exit status: 0 where all are equal, 1 where one is different, 2 where one cannot be compared or judged.

    Raises:
      ValueError, OSError: wrong arguments, a checkpoint that cannot be read or does not fit, or a machine that
        does not compute in float32 when asked to. As JSON and for GitHub they are printed instead.
    """
    console = Console(stderr=output_format == "json")
    command = " ".join(["jaxmodels", *sys.argv[1:]])
    outcome = Outcome()
    with stdout_for(output_format):
        try:
            if steps < 0:
                raise ValueError(f"steps must be an integer ≥ 0; got steps={steps}")
            if output is not None:
                _check_writable(output)
            if any(map(is_capture, targets)):
                jobs = [_job_of_captures(targets, checkpoint, dtype, map_file)]
            else:
                from jaxmodels.compare.jobs import jobs_of  # here: captures are judged without PyTorch

                options = {"dtype": dtype, "steps": steps, "mode": mode, "optimizer": optimizer}
                jobs = jobs_of(targets, checkpoint, config, seed, options, map_file, console.print)
            outcome = _compare_all(jobs, console)
        except (ValueError, OSError) as error:
            if output_format == "text":
                raise
            outcome = Outcome(failures=[failure_of(error, None)])
    show(outcome, output_format, console, command=command)
    if output is not None and (outcome.results or outcome.failures):
        write(outcome.results, output, command=command, failures=outcome.failures)
        console.print(f"report: {output / 'report.html'}")
    return outcome.status


def is_pair_file(target: str) -> bool:
    """Whether a word of the command line is a user's file and no name of a model."""
    return target.endswith(".py")


def is_capture(target: str) -> bool:
    """Whether a word of the command line is the folder of a capture."""
    return target.rstrip("/").endswith(CAPTURE_SUFFIX) or Path(target, INDEX_FILE).is_file()


def _job_of_captures(
    targets: Sequence[str], checkpoint: Path | None, dtype: DType, map_file: Path | None
) -> Job:
    """The judgement of two captures, and of more that measure the noise.

    Raises:
      ValueError: words of other kinds, a single capture, or an option that captures do not have.
    """
    if not all(map(is_capture, targets)) or len(targets) < 2:
        raise ValueError(
            f"captures are compared with each other: give the folders of two or more; got {' '.join(targets)}"
        )
    if checkpoint is not None:
        raise ValueError("checkpoint is for the five models; a capture holds its own weights")
    folders = [Path(target).expanduser() for target in targets]
    name = " and ".join(folder.name.removesuffix(CAPTURE_SUFFIX) for folder in folders[:2])

    def judged(progress: Progress) -> Result:
        progress("judging", 0.0)
        table = None if map_file is None else read_map(map_file)
        return judge(*folders, dtype=dtype if dtype == "float64" else None, table=table)

    return Job(name, judged)


def _compare_all(jobs: Sequence[Job], console: Console) -> Outcome:
    """One after another; a pair that fails does not stop the others.

    Raises:
      ValueError: the machine computes float32 products with fewer digits.
    """
    outcome = Outcome()
    with _Bar(console, len(jobs)) as bar:
        for job in jobs:
            try:
                outcome.results.append(job.compare(partial(bar.stage, job.name)))
                shown = outcome.results[-1].verdict
            except ReducedPrecisionError as error:
                raise ValueError(str(error)) from error
            except Exception as error:
                if not isinstance(error, ValueError | OSError):
                    traceback.print_exc()  # of this package's own, perhaps
                outcome.failures.append(failure_of(error, job.name, job.folder))
                shown = "cannot be compared"
            bar.done(job.name, shown)
    return outcome


def _check_writable(output: Path) -> None:
    """Before minutes of work: creates the folder of the report and a file in it."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder; got {output}")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(
            f"output must be a folder that can be written; {output}: {error.strerror}"
        ) from error


class _Bar:
    """A progress bar on a terminal, one plain line per pair elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.finished = 0
        self.started = time.monotonic()
        columns = (TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn())
        self.progress = ProgressBar(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )

    def __enter__(self) -> "_Bar":
        self.progress.start()
        self.task = self.progress.add_task("", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def stage(self, name: str, stage: str, share: float) -> None:
        self.progress.update(self.task, completed=self.finished + share, description=f"{name}: {stage}")

    def done(self, name: str, verdict: str) -> None:
        self.finished += 1
        self.progress.update(self.task, completed=self.finished)
        if not self.console.is_terminal:
            seconds = time.monotonic() - self.started
            shown = verdict if verdict == "equal" else verdict.upper()
            print(f"{name}: {shown} ({seconds:.0f} s)", file=self.console.file, flush=True)
