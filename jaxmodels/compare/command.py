"""`jaxmodels compare`: the five models or a user's pairs, a table, a report, an exit status."""

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from jaxmodels.compare.engine import Progress, compare
from jaxmodels.compare.formats import Format, show, stdout_for
from jaxmodels.compare.noise import DType
from jaxmodels.compare.outcome import Outcome, failure_of
from jaxmodels.compare.pair import Pair
from jaxmodels.compare.pair_files import read_pairs
from jaxmodels.compare.precision import ReducedPrecisionError
from jaxmodels.compare.preparation import Mode
from jaxmodels.compare.report import write
from jaxmodels.compare.result import Result
from jaxmodels.compare.subjects import default_model, name_of, pair_of
from jaxmodels.convert.bare_checkpoints import from_checkpoint
from jaxmodels.convert.hub import from_pretrained
from jaxmodels.models import MODEL_NAMES, ModelName


@dataclass(frozen=True)
class _Job:
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
    mode: Mode = "eval",
    seed: int = 0,
    output: Path | None = None,
    output_format: Format = "text",
) -> int:
    """Compares and prints.

    Args:
      targets: names of models, or files with a `pair()`; all five models where there is none.
      checkpoint, config: weights of one of the models.
      steps: optimiser steps of the training run.
      dtype: the compared type.
      mode: evaluation or training mode.
      seed: of fresh weights.
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
            # PyTorch's float64 runs supply the noise floor either way; a user's arrays keep JAX's default type.
            if dtype == "float64" or not any(map(is_pair_file, targets)):
                jax.config.update("jax_enable_x64", True)
            options = {"dtype": dtype, "steps": steps, "mode": mode}
            outcome = _compare_all(_jobs(targets, checkpoint, config, seed, options, console), console)
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


def _jobs(
    targets: Sequence[str],
    checkpoint: Path | None,
    config: dict[str, Any] | None,
    seed: int,
    options: Mapping[str, Any],
    console: Console,
) -> list[_Job]:
    """What the words of the command line ask for.

    Raises:
      ValueError, OSError: as `run`.
    """
    if checkpoint is not None:
        if any(map(is_pair_file, targets)):
            raise ValueError("checkpoint is for the five models; a file with a pair() loads its own weights")
        loaded = _load(checkpoint, config, targets, console)
        return [
            _Job(name_of(loaded), lambda progress: compare(pair_of(loaded), progress=progress, **options))
        ]
    if config is not None:
        raise ValueError("config describes a checkpoint; pass --checkpoint with it")

    def of_model(name: ModelName, progress: Progress) -> Result:
        return compare(pair_of(default_model(name, seed)), progress=progress, **options)

    def of_pair(pair: Pair, progress: Progress) -> Result:
        return compare(pair, progress=progress, **options)

    jobs = []
    for target in targets or MODEL_NAMES:
        if is_pair_file(target):
            path = Path(target).expanduser()
            jobs += [_Job(pair.name, partial(of_pair, pair), path.parent) for pair in read_pairs(path)]
        else:
            jobs.append(_Job(target, partial(of_model, cast("ModelName", target))))
    return jobs


def _compare_all(jobs: Sequence[_Job], console: Console) -> Outcome:
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


def _load(
    checkpoint: Path, config: dict[str, Any] | None, models: Sequence[str], console: Console
) -> nnx.Module:
    if checkpoint.is_dir():
        if config is not None:
            raise ValueError(
                f"config is for bare checkpoints; the folder {checkpoint} has its own config.json"
            )
        model = from_pretrained(checkpoint)
    else:
        model, assumed = from_checkpoint(checkpoint, config=config)
        if assumed:
            console.print(f"not visible in the checkpoint, taken as their defaults: {', '.join(assumed)}")
    if len(models) > 1 or (models and models[0] != name_of(model)):
        raise ValueError(f"{checkpoint} holds a {name_of(model)}; got models={' '.join(models)}")
    return model


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
