"""`jaxmodels compare`: the five models, a table, a report, an exit status."""

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jaxmodels.compare.divergence import Verdict
from jaxmodels.compare.engine import compare
from jaxmodels.compare.precision import ReducedPrecisionError
from jaxmodels.compare.report import print_table, write
from jaxmodels.compare.result import Result
from jaxmodels.compare.subjects import default_model, name_of, pair_of
from jaxmodels.convert.bare_checkpoints import from_checkpoint
from jaxmodels.convert.hub import from_pretrained
from jaxmodels.models import MODEL_NAMES, ModelName


def run(
    models: Sequence[ModelName],
    *,
    checkpoint: Path | None = None,
    config: dict[str, Any] | None = None,
    steps: int = 3,
    dtype: Literal["float32", "float64"] = "float32",
    seed: int = 0,
    output: Path | None = None,
) -> int:
    """Compares and prints.

    Returns:
      The exit status: 0 where all are equal, 1 where one is different, 2 where one cannot be judged.

    Raises:
      ValueError, OSError: wrong arguments, a checkpoint that cannot be read or does not fit, or a machine that
        does not compute in float32 when asked to.
    """
    jax.config.update("jax_enable_x64", True)  # float64 PyTorch runs supply the noise floor either way
    if steps < 0:
        raise ValueError(f"steps must be an integer ≥ 0; got steps={steps}")
    if output is not None:
        _check_writable(output)
    console = Console()
    if checkpoint is not None:
        loaded = _load(checkpoint, config, models, console)
        subjects: list[tuple[ModelName, nnx.Module | None]] = [(name_of(loaded), loaded)]
    else:
        if config is not None:
            raise ValueError("config describes a checkpoint; pass --checkpoint with it")
        subjects = [(name, None) for name in models or MODEL_NAMES]

    results: list[Result] = []
    with _Bar(console, [name for name, _ in subjects]) as bar:
        for name, model in subjects:
            pair = pair_of(default_model(name, seed) if model is None else model)
            progress = partial(bar.stage, name)
            try:
                results.append(compare(pair, dtype=dtype, steps=steps, progress=progress))
            except ReducedPrecisionError as error:
                raise ValueError(str(error)) from error
            bar.done(name, results[-1].verdict)
    print_table(results, console)
    if output is not None:
        write(results, output, command=" ".join(["jaxmodels", *sys.argv[1:]]))
        console.print(f"report: {output / 'report.html'}")
    verdicts = {result.verdict for result in results}
    return 1 if "different" in verdicts else 2 if "cannot be judged" in verdicts else 0


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
    checkpoint: Path, config: dict[str, Any] | None, models: Sequence[ModelName], console: Console
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
    """A progress bar on a terminal, one plain line per model elsewhere."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self.console = console
        self.total = len(names)
        self.finished = 0
        self.started = time.monotonic()
        columns = (TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def __enter__(self) -> "_Bar":
        self.progress.start()
        self.task = self.progress.add_task("", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def stage(self, name: str, stage: str, share: float) -> None:
        self.progress.update(self.task, completed=self.finished + share, description=f"{name}: {stage}")

    def done(self, name: str, verdict: Verdict) -> None:
        self.finished += 1
        self.progress.update(self.task, completed=self.finished)
        if not self.console.is_terminal:
            seconds = time.monotonic() - self.started
            shown = verdict if verdict == "equal" else verdict.upper()
            print(f"{name}: {shown} ({seconds:.0f} s)", flush=True)
