"""What a run reports while it trains: metrics.jsonl, the progress on the console, and TensorBoard."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from jaxmodels.training.run.program import Program
from jaxmodels.training.run.progress import Reporter, describe_data, metrics_text
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

    def begin(self, state: TrainState) -> None:
        """Describes the run on the console and starts the clock."""
        step, steps = int(state.step), self.program.experiment.steps
        self._introduce(state)
        self.clock = Clock(step)
        self.reporter.start(step, steps)

    def first_step_done(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Leaves the compilation out of the time of the steps that follow."""
        jax.block_until_ready(metrics)
        self.reporter.print(f"first step after {self.clock.restart(step):.1f} s, compilation included")
        self.reporter.first_step_done(step)

    def metrics(
        self, step: int, metrics: Mapping[str, Any], evaluate: Callable[[], Mapping[str, float]] | None
    ) -> None:
        """Notes the metrics of a step and those of the validation data, if there is a function that computes them."""
        line = {"loss": float(metrics["loss"])} | {name: float(value) for name, value in metrics.items()}
        rate = self.clock.steps_per_second(step) * self.program.experiment.batch_size
        if rate:
            line["examples_per_second"] = round(rate, 2)
        line["seconds"] = round(self.seconds, 2)
        if evaluate is not None:
            with self.clock.paused():
                validation = evaluate()
            line |= {f"validation_{name}": value for name, value in validation.items()}
            self.reporter.print(f"step {step}: validation {metrics_text(validation)}")
        self.workdir.append_metrics({"step": step, **line})
        if self.tensorboard is not None:
            self.tensorboard.scalars(step, line)
        self.reporter.report_progress({"step": step, **line}, rate)

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

    def restart(self, step: int) -> float:
        """Counts from `step` on; returns the seconds since the last call, which are not counted."""
        spent = time.monotonic() - self.mark
        self.step, self.mark = step, time.monotonic()
        return spent

    @contextmanager
    def paused(self) -> Generator[None]:
        """The time of the block is not counted."""
        began = time.monotonic()
        yield
        self.mark += time.monotonic() - began

    def steps_per_second(self, step: int) -> float:
        """Since the last call; 0 if there were no steps."""
        steps = step - self.step
        spent = self.restart(step)
        if steps == 0 or spent <= 0:
            return 0.0
        self.total += spent
        return steps / spent
