"""What a run reports while it trains: metrics.jsonl, the progress on the console, and TensorBoard."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from jaxmodels.training.run.program import Program
from jaxmodels.training.run.progress import Reporter, describe_data, metrics_text
from jaxmodels.training.run.speed import Lap, Speed, speed_of
from jaxmodels.training.run.tensorboard import TensorBoard
from jaxmodels.training.run.workdir import Workdir
from jaxmodels.training.step import TrainState


class Log:
    """Collects the metrics of steps and sends them to the file, the console and TensorBoard."""

    def __init__(
        self, program: Program, workdir: Workdir, reporter: Reporter, *, data: Mapping[str, Any]
    ) -> None:
        self.program, self.workdir, self.reporter, self.data = program, workdir, reporter, data
        self.seconds_before = workdir.seconds()
        wanted = program.experiment.tensorboard and workdir.writes
        self.tensorboard = TensorBoard(workdir.tensorboard) if wanted else None
        self.speed: Speed | None = None  # known after the first step
        self.doubted = False

    def begin(self, state: TrainState) -> None:
        """Describes the run on the console and starts the clock."""
        step, steps = int(state.step), self.program.experiment.steps
        self._introduce(state)
        self.clock = Clock(step)
        self.reporter.start(step, steps)

    def first_step_done(self, step: int, metrics: Mapping[str, Any], function: Any) -> None:
        """Leaves the compilation out of the time of the steps that follow.

        Args:
          step, metrics: number and metrics of that step.
          function: the compiled step.
        """
        jax.block_until_ready(metrics)
        self.reporter.print(f"first step after {self.clock.restart(step):.1f} s, compilation included")
        if self.workdir.writes:
            with self.clock.paused():
                self.speed = speed_of(self.program, function)
        self.reporter.first_step_done(step)

    def metrics(
        self, step: int, metrics: Mapping[str, Any], evaluate: Callable[[], Mapping[str, float]] | None
    ) -> None:
        """Notes the metrics of a step and those of the validation data, if there is a function that computes them."""
        line = {"loss": float(metrics["loss"])} | {name: float(value) for name, value in metrics.items()}
        lap = self.clock.lap(step)
        measured = self._measured(lap)
        line |= measured
        line["seconds"] = round(self.seconds, 2)
        if evaluate is not None:
            with self.clock.paused():
                validation = evaluate()
            line |= {f"validation_{name}": value for name, value in validation.items()}
            self.reporter.print(f"step {step}: validation {metrics_text(validation)}")
        self.workdir.append_metrics({"step": step, **line})
        if self.tensorboard is not None:
            self.tensorboard.scalars(step, line)
        self.reporter.report_progress(
            {"step": step, **line}, self.speed.texts(measured) if self.speed and measured else []
        )

    def _measured(self, lap: Lap | None) -> dict[str, float]:
        """What is known of the speed; empty if no step was timed."""
        if lap is None or self.speed is None:
            return {}
        doubt = self.speed.doubt(lap)
        if doubt is not None and not self.doubted:
            self.doubted = True
            self.reporter.print(doubt)
        return self.speed.measured(lap)

    @property
    def seconds(self) -> float:
        """Seconds that the steps of this and all earlier sessions took, without compilation and evaluation."""
        return self.seconds_before + self.clock.total

    def _introduce(self, state: TrainState) -> None:
        program, task = self.program, self.program.task
        parameters = sum(math.prod(v.shape) for v in state.parameters.values())
        mesh = program.mesh
        self.reporter.print(
            f"{task.name}: {parameters:,} parameters, {task.examples:,} examples, "
            f"{mesh.size} × {jax.devices()[0].device_kind}, "
            f"mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}, {program.experiment.precision}"
        )
        for key, value in describe_data(self.data).items():
            self.reporter.print(f"  {key}: {value}")


class Clock:
    """Seconds that were spent on steps, without compilation, evaluation and checkpoints."""

    def __init__(self, step: int) -> None:
        self.step, self.mark, self.total = step, time.monotonic(), 0.0
        self.waited = 0.0  # for data, since the mark

    def restart(self, step: int) -> float:
        """Counts from `step` on; returns the seconds since the last call, which are not counted."""
        spent = time.monotonic() - self.mark
        self.step, self.mark, self.waited = step, time.monotonic(), 0.0
        return spent

    @contextmanager
    def paused(self) -> Generator[None]:
        """The time of the block is not counted."""
        began = time.monotonic()
        yield
        self.mark += time.monotonic() - began

    @contextmanager
    def waiting(self) -> Generator[None]:
        """The time of the block is that of waiting for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def lap(self, step: int) -> Lap | None:
        """The steps since the last call; None if there were none."""
        steps, waited = step - self.step, self.waited
        spent = self.restart(step)
        if steps == 0 or spent <= 0:
            return None
        self.total += spent
        return Lap(spent / steps, waited / steps)
