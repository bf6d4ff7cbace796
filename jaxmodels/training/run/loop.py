"""The training loop: from an experiment to a trained model, through interruptions."""

import math
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from rich.console import Console

from jaxmodels.atomic import atomic_write
from jaxmodels.convert.hub import save_pretrained
from jaxmodels.training.batches import batches
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.functional_model import FunctionalModel
from jaxmodels.training.mesh import (
    batch_sharding,
    everywhere,
    gathered,
    join_hosts,
    make_mesh,
    replicated,
    sharding_of,
)
from jaxmodels.training.optimizer import optimizer, schedule
from jaxmodels.training.run.checkpoints import Checkpoints
from jaxmodels.training.run.interrupts import Interrupts
from jaxmodels.training.run.progress import Reporter, metrics_text
from jaxmodels.training.run.report import write_report
from jaxmodels.training.run.workdir import Workdir, environment
from jaxmodels.training.step import Parameters, TrainState, initial_state, make_step, unhealthy
from jaxmodels.training.task import Task


# JAX's names of matrix-product precisions. "highest": float32 is not rounded on the way into the multipliers.
MATMUL_PRECISION = {
    "float32": "highest",
    "tensorfloat32": "tensorfloat32",
    "bfloat16": "default",
    "float64": "highest",
}
PROFILED_STEPS = range(10, 15)


class Diverged(Exception):
    """The loss or a gradient was not finite."""


def train(experiment: Experiment, *, preset: str = "", console: Console | None = None) -> int:
    """Trains, evaluates, and writes everything into `experiment.workdir`; see docs/train.md for the files.

    Returns:
      The exit status: 0 when the run is complete, 1 when the loss was not finite, 128 + signal when it was
      asked to stop and has saved.

    Raises:
      ValueError, OSError: wrong settings, data or files; a checkpoint could not be written or read.
    """
    if experiment.precision == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError("precision='float64' needs jax.config.update('jax_enable_x64', True) at the start")
    join_hosts(experiment.hosts)
    first = jax.process_index() == 0
    reporter = Reporter(console or Console(), speaks=first)
    workdir = Workdir(experiment.workdir, writes=first)
    task = experiment.task()
    workdir.check(experiment, task.describe())
    with jax.default_matmul_precision(MATMUL_PRECISION[experiment.precision]):
        run = Run(experiment, task, workdir, reporter)
        _together("the settings were checked")
        workdir.folder.mkdir(parents=True, exist_ok=True)
        workdir.begin(preset, experiment, task.describe())
        try:
            with Interrupts(reporter.say) as interrupts:
                status = run.train(interrupts)
        except Diverged as error:
            reporter.say(str(error))
            return 1
        finally:
            reporter.stop()
        if status == 0:
            run.finish(preset)
        run.checkpoints.close()
    return status


class Run:
    """One run: its compiled step, its state, its evaluation."""

    def __init__(self, experiment: Experiment, task: Task, workdir: Workdir, reporter: Reporter) -> None:
        self.experiment, self.task, self.workdir, self.reporter = experiment, task, workdir, reporter
        self.mesh = make_mesh(experiment.mesh)
        if experiment.batch_size % (self.mesh.size * experiment.accumulate):
            raise ValueError(
                f"batch_size must be a multiple of devices × accumulate = {self.mesh.size} × "
                f"{experiment.accumulate}; got batch_size={experiment.batch_size}"
            )
        wide = experiment.precision == "float64"
        kinds: dict[str, Any] = {
            "dtype": jnp.bfloat16 if experiment.precision == "bfloat16" else None,
            "param_dtype": jnp.float64 if wide else jnp.float32,
        }
        self.make = lambda: task.model(**kinds, rngs=nnx.Rngs(experiment.seed))
        if experiment.attention == "cudnn" and jax.default_backend() != "gpu":
            raise ValueError(
                f"attention must be 'xla' on a {jax.default_backend().upper()}: cuDNN belongs to NVIDIA GPUs; "
                "got attention='cudnn'"
            )
        self.functional = FunctionalModel(self.make, attention=experiment.attention)
        self.tx = optimizer(experiment.optim, experiment.steps, self.functional.parameters)
        self.key = jax.random.key(experiment.seed)
        self.compiled: dict[str, Any] = {}  # evaluation functions
        self.keep_average = experiment.optim.ema_decay > 0

    @property
    def abstract(self) -> TrainState:
        """Shapes, types and places of the state."""
        shapes = jax.eval_shape(self._initial)
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(self.mesh, x.shape))  # noqa: E731
        return jax.tree.map(place, shapes)

    def _initial(self) -> TrainState:
        return initial_state(self.functional, self.make, self.tx, average=self.keep_average)

    def step(self) -> Any:
        """The compiled step: (state, batch) -> (state, metrics); the state's memory is reused."""
        experiment = self.experiment
        return jax.jit(
            make_step(
                self.task,
                self.functional,
                self.tx,
                key=self.key,
                accumulate=experiment.accumulate,
                learning_rate=schedule(experiment.optim, experiment.steps),
                ema_decay=experiment.optim.ema_decay,
                remat=experiment.remat,
                gathered=gathered(self.mesh),
            ),
            donate_argnums=0,
            out_shardings=(jax.tree.map(lambda x: x.sharding, self.abstract), replicated(self.mesh)),
        )

    def start(self) -> TrainState:
        """The newest checkpoint, or fresh weights born in their shards."""
        self.checkpoints = Checkpoints(
            self.workdir.checkpoints, keep=self.experiment.keep, say=self.reporter.say
        )
        abstract = self.abstract
        state = self.checkpoints.restore(abstract) if self.experiment.resume else None
        if state is not None:
            self.reporter.say(f"going on from the checkpoint of step {int(state.step)}")
            return state
        if self.experiment.resume:
            self.reporter.say("no checkpoint to go on from: beginning")
        return jax.jit(self._initial, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))()

    def train(self, interrupts: Interrupts) -> int:
        """Runs the steps that are left; returns the exit status."""
        experiment, reporter = self.experiment, self.reporter
        self.state = self.start()
        begun = int(self.state.step)
        self.workdir.truncate_metrics(begun)
        self._introduce()
        step = self.step()
        stream = batches(
            self.task,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            sharding=batch_sharding(self.mesh),
            start=begun,
        )
        tensorboard = _tensorboard(self.workdir) if experiment.tensorboard else None
        reporter.start(begun, experiment.steps)
        clock = Clock(begun)
        last: tuple[Any, Mapping[str, Any]] | None = None
        for number, batch in zip(range(begun + 1, experiment.steps + 1), stream, strict=False):
            with _profiled(self.workdir.folder, number - begun) if experiment.profile else _nothing():
                self.state, metrics = step(self.state, batch)
            if number == begun + 1:
                self._compiled(metrics, clock)
            if last is not None:  # one step late, so that the device need not wait for the host
                self._require_finite(number - 1, *last)
            last = batch, metrics
            stopping = interrupts.requested(number)
            final = number == experiment.steps
            evaluating = number % self._every("evaluate") == 0 or final
            if number % self._every("log") == 0 or evaluating or stopping:
                self._require_finite(number, *last)
                self._log(number, metrics, clock, tensorboard, evaluate=evaluating)
            if number % self._every("checkpoint") == 0 or final or stopping:
                self._require_finite(number, *last)
                self.checkpoints.save(self.state, {"step": number})
            self.checkpoints.check()
            reporter.advance(number)
            if stopping and not final:
                self.checkpoints.wait()
                reporter.stop()
                reporter.say(f"stopped and saved at step {number}; go on with --resume")
                return interrupts.status
        self.checkpoints.wait()
        reporter.stop()
        self.seconds = clock.total
        return 0

    def finish(self, preset: str) -> None:
        """The held-out test data, the baselines, the model folder and the report."""
        reporter, task = self.reporter, self.task
        reporter.say("evaluating on the test data")
        metrics = task.evaluate(self.call, "test")
        samples = task.samples(self.call)
        model, extras = task.export(self.functional.merge(self._gathered()))
        if not self.workdir.writes:
            _together("finished")
            return
        reporter.say("computing the baselines")
        baselines = task.baselines()
        save_pretrained(model, self.workdir.model)
        if extras:
            with atomic_write(self.workdir.model / "extras.safetensors") as path:
                safetensors.numpy.save_file({k: np.asarray(v, order="C") for k, v in extras.items()}, path)
        results = {
            "task": task.name,
            "metric": {"name": task.metric.name, "better": task.metric.better},
            "test": metrics,
            "baselines": baselines,
            "parameters": sum(math.prod(v.shape) for v in self.state.parameters.values()),
            "steps": self.experiment.steps,
            "seconds": round(self.seconds, 1),
            "environment": environment(),
        }
        self.workdir.write_results(results)
        write_report(self.workdir, preset, self.experiment, task, results, samples)
        if self.experiment.tensorboard:
            _tensorboard_samples(self.workdir, samples, self.experiment.steps)
        reporter.say(f"test: {metrics_text(metrics)}")
        for name, values in baselines.items():
            reporter.say(f"  {name}: {metrics_text(values)}")
        reporter.say(f"model: {self.workdir.model}  report: {self.workdir.folder / 'report.html'}")
        _together("finished")

    def call(self, name: str, batch: Mapping[str, np.ndarray]) -> Any:
        """Runs one of the task's functions on the trained weights (their average, if there is one)."""
        if name not in self.compiled:
            function = self.task.functions[name]
            self.compiled[name] = jax.jit(
                lambda parameters, batch: function(self.functional.merge(parameters), batch),
                out_shardings=replicated(self.mesh),
            )
        placed = {key: everywhere(self.mesh, np.asarray(value)) for key, value in batch.items()}
        outputs = self.compiled[name](self._evaluated, placed)
        return jax.tree.map(_to_numpy, outputs)

    @property
    def _evaluated(self) -> Parameters:
        return self.state.parameters if self.state.average is None else self.state.average

    def _gathered(self) -> Parameters:
        """The evaluated weights, whole, on every process."""
        whole = jax.jit(lambda x: x, out_shardings=replicated(self.mesh))(self._evaluated)
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), whole)

    def _every(self, what: str) -> int:
        """How many steps lie between two logs, evaluations or checkpoints."""
        given = getattr(self.experiment, f"{what}_every")
        if given is not None:
            return given
        steps = self.experiment.steps
        return max(1, steps // 100) if what == "log" else max(1, min(steps // 10, 1000))

    def _introduce(self) -> None:
        parameters = sum(math.prod(v.shape) for v in self.state.parameters.values())
        devices = f"{self.mesh.size} × {jax.devices()[0].device_kind}"
        self.reporter.say(
            f"{self.task.name}: {parameters:,} parameters, {self.task.examples:,} examples, {devices}, "
            f"mesh data={self.mesh.shape['data']} fsdp={self.mesh.shape['fsdp']}, {self.experiment.precision}"
        )
        for key, value in self.task.describe().items():
            self.reporter.say(f"  {key}: {value}")

    def _compiled(self, metrics: Mapping[str, Any], clock: "Clock") -> None:
        jax.block_until_ready(metrics)
        self.reporter.say(f"first step after {clock.restart(1):.1f} s, compilation included")

    def _log(
        self, number: int, metrics: Mapping[str, Any], clock: "Clock", tensorboard: Any, *, evaluate: bool
    ) -> None:
        line = {"loss": float(metrics["loss"])} | {name: float(value) for name, value in metrics.items()}
        rate = clock.rate(number) * self.experiment.batch_size
        if rate:
            line["examples_per_second"] = round(rate, 2)
        if evaluate:
            held_out = self.task.evaluate(self.call, "validation")
            line |= {f"validation_{name}": value for name, value in held_out.items()}
            self.reporter.say(f"step {number}: validation {metrics_text(held_out)}")
            clock.skip(number)
        self.workdir.append_metrics({"step": number, **line})
        if tensorboard is not None:
            for name, value in line.items():
                tensorboard.add_scalar(name, value, number)
        self.reporter.log({"step": number, **line}, rate, "examples")

    def _require_finite(self, number: int, batch: Any, metrics: Mapping[str, Any]) -> None:
        """Diverged with a diagnosis, unless loss and gradient of step `number` are finite."""
        if math.isfinite(float(metrics["loss"])) and math.isfinite(float(metrics["gradient_norm"])):
            return
        self.checkpoints.wait()
        key = jax.random.fold_in(self.key, number - 1)
        bad = unhealthy(self.task, self.functional, self.state.parameters, batch, key)
        steps = self.checkpoints.steps()
        raise Diverged(
            f"stopped at step {number}: the loss is {float(metrics['loss'])} and the norm of its gradient "
            f"{float(metrics['gradient_norm'])}.\n  {_diagnosis(bad)}\n  "
            + (f"The checkpoint of step {steps[0]} is intact. " if steps else "There is no checkpoint yet. ")
            + "A lower --optim.learning-rate, a longer --optim.warmup-steps or a smaller --optim.clip-norm "
            "may help."
        )


class Clock:
    """Seconds that were spent on steps, without compilation and evaluation."""

    def __init__(self, step: int) -> None:
        self.step, self.mark, self.total = step, time.monotonic(), 0.0

    def restart(self, steps: int) -> float:
        """Begins anew after `steps`; returns what they took."""
        spent = time.monotonic() - self.mark
        self.step, self.mark = self.step + steps, time.monotonic()
        return spent

    def rate(self, step: int) -> float:
        """Steps per second since the last call, or 0 if there were none."""
        spent, steps = time.monotonic() - self.mark, step - self.step
        self.total += spent
        self.step, self.mark = step, time.monotonic()
        return steps / spent if steps and spent > 0 else 0.0

    def skip(self, step: int) -> None:
        self.step, self.mark = step, time.monotonic()


def _diagnosis(bad: Mapping[str, Any]) -> str:
    """Which group of parameters went bad, in a sentence."""
    groups = {kind: _groups(bad[kind]) for kind in ("parameters", "gradients")}
    if bad["batch"]:
        return f"The batch itself holds values that are not finite: {', '.join(bad['batch'])}."
    if groups["parameters"]:
        return f"These parameters are not finite: {_some(groups['parameters'])}."
    if groups["gradients"]:
        return f"First bad are the gradients of {_some(groups['gradients'])}; all parameters are finite."
    return "The same step, run again on its own, is finite: the loss of its parts overflowed only together."


def _groups(names: list[str]) -> list[str]:
    """The modules that parameters belong to, in order."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _to_numpy(x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def _together(name: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextmanager
def _nothing() -> Generator[None]:
    yield


@contextmanager
def _profiled(folder: Path, step: int) -> Generator[None]:
    """Traces the steps of `PROFILED_STEPS`, after compilation."""
    if step == PROFILED_STEPS.start:
        jax.profiler.start_trace(str(folder / "profile"))
    yield
    if step == PROFILED_STEPS.stop - 1:
        jax.profiler.stop_trace()


def _tensorboard(workdir: Workdir) -> Any:
    """A writer of TensorBoard's files; ModuleNotFoundError names the extra."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--tensorboard needs: pip install 'jaxmodels[tensorboard]'") from error
    return SummaryWriter(str(workdir.folder / "tensorboard")) if workdir.writes else None


def _tensorboard_samples(workdir: Workdir, samples: list, step: int) -> None:
    writer = _tensorboard(workdir)
    for sample in samples:
        if sample.figure is not None:
            writer.add_figure(sample.title, sample.figure, step)
        if sample.text is not None:
            writer.add_text(sample.title, sample.text, step)
    writer.close()
