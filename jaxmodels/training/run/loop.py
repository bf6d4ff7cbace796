"""The training loop: from an experiment to a trained model, across interruptions."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import jax
from rich.console import Console

from jaxmodels.training.batches import batches
from jaxmodels.training.experiment import Experiment, require_given
from jaxmodels.training.mesh import barrier, batch_sharding, join_hosts, require_device
from jaxmodels.training.run.checkpoints import Checkpoints
from jaxmodels.training.run.divergence import Diverged, require_finite, require_finite_state
from jaxmodels.training.run.finish import finish
from jaxmodels.training.run.interrupts import Interrupts
from jaxmodels.training.run.log import Log
from jaxmodels.training.run.profile import Profile
from jaxmodels.training.run.program import Program
from jaxmodels.training.run.progress import PersistentConsole, Reporter
from jaxmodels.training.run.tensorboard import require_tensorboard
from jaxmodels.training.run.workdir import UnwritableFile, Workdir
from jaxmodels.training.step import TrainState


# JAX's names of matrix-product precisions. "highest": float32 is not rounded on the way into the multipliers.
MATMUL_PRECISION = {
    "float32": "highest",
    "tensorfloat32": "tensorfloat32",
    "bfloat16": "default",
    "float64": "highest",
}


def train(
    experiment: Experiment,
    *,
    preset: str = "",
    given: Collection[str] = (),
    console: Console | None = None,
) -> int:
    """Trains, evaluates, and writes everything into `experiment.workdir`; see docs/train.md for the files.

    Nothing is written before all settings and all data have been checked.

    Args:
      experiment: all settings.
      preset: a name for the report.
      given: names of settings, such as "model.num_classes", that the data must not overrule.
      console: where messages go; by default standard output.

    Returns:
      The exit status: 0 when the run is complete, 1 when the loss was not finite, 128 + signal when it was
      asked to stop and has saved.

    Raises:
      ValueError, OSError: wrong settings, data or files; a checkpoint could not be written or read.
    """
    if experiment.precision == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError("precision='float64' needs jax.config.update('jax_enable_x64', True) at the start")
    if experiment.tensorboard:
        require_tensorboard()
    join_hosts(experiment.hosts)
    require_device()
    first = jax.process_index() == 0
    reporter = Reporter(console or PersistentConsole(), active=first)
    workdir = Workdir(experiment.workdir, writes=first)
    task = experiment.task()
    fitted = experiment.fitted_to(task)
    require_given(experiment, fitted, given)
    data = task.describe()
    workdir.require_free()
    workdir.check(fitted, data)
    with jax.default_matmul_precision(MATMUL_PRECISION[fitted.precision]):
        program = Program(fitted, task)
        barrier("the settings were checked")
        with workdir.lock():
            if workdir.writes:
                workdir.check(fitted, data)  # once more: another run may have begun meanwhile
            for line in workdir.begin(preset, fitted, data):
                reporter.print(line)
            return _run(program, workdir, reporter, preset=preset, data=data)


def _run(
    program: Program, workdir: Workdir, reporter: Reporter, *, preset: str, data: Mapping[str, Any]
) -> int:
    """Everything after the checks; returns the exit status."""
    with ExitStack() as stack:
        try:
            with Interrupts(reporter.print) as interrupts:
                checkpoints = Checkpoints(
                    workdir.checkpoints, keep=program.experiment.keep, report=reporter.print
                )
                stack.enter_context(closing(checkpoints))
                state = _restore_or_begin(program, checkpoints, reporter)
                workdir.truncate_metrics(int(state.step))
                log = Log(program, workdir, reporter, data=data)
                log.begin(state)
                state, status = run_steps(program, state, checkpoints, log, interrupts)
            reporter.stop()
            if status == 0:
                finish(program, state, workdir, reporter, preset=preset, data=data, seconds=log.seconds)
        except Diverged as error:
            reporter.stop()
            reporter.print(str(error))
            return 1
        except UnwritableFile as error:
            raise OSError(
                f"{error}; {checkpoints.newest()}; make room and run again with --resume"
            ) from error
        finally:
            reporter.stop()
    return status


def run_steps(
    program: Program, state: TrainState, checkpoints: Checkpoints, log: Log, interrupts: Interrupts
) -> tuple[TrainState, int]:
    """Runs the steps that are left, with their checkpoints; returns the new state and the exit status.

    Raises:
      Diverged: a loss or gradient was not finite.
      OSError: a checkpoint could not be written.
    """
    experiment, begun = program.experiment, int(state.step)
    step = program.step()
    stream = batches(
        program.task,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        sharding=batch_sharding(program.mesh),
        start=begun,
    )
    unchecked = None
    profile = Profile(log.workdir.folder, steps=experiment.steps - begun, active=experiment.profile)
    for number in range(begun + 1, experiment.steps + 1):
        with log.clock.waiting():
            batch = next(stream)
        with profile.step(number - begun):
            state, metrics = step(state, batch)
        if number == begun + 1:
            log.first_step_done(number, metrics, step)
        if unchecked is not None:  # one step late, so that the device need not wait for the host
            require_finite(program, checkpoints, state, *unchecked)
        unchecked = number, batch, metrics
        final, stopping = number == experiment.steps, interrupts.requested(number)
        evaluating = final or _is_due(experiment, "evaluate", number)
        logging = evaluating or stopping or _is_due(experiment, "log", number)
        saving = final or stopping or _is_due(experiment, "checkpoint", number)
        if logging or saving:
            require_finite(program, checkpoints, state, *unchecked)
        if evaluating or saving:
            with log.clock.paused():
                require_finite_state(checkpoints, state)
        if logging:
            evaluate = partial(program.task.evaluate, program.evaluation(state), "validation")
            log.metrics(number, metrics, evaluate if evaluating else None)
        if saving:
            with log.clock.paused():
                checkpoints.save(state, {"step": number})
        checkpoints.check()
        log.reporter.advance(number)
        if stopping and not final:
            profile.stop()
            checkpoints.wait()
            log.reporter.stop()
            log.reporter.print(f"stopped and saved at step {number}; continue with --resume")
            return state, interrupts.status
    checkpoints.wait()
    return state, 0


def _restore_or_begin(program: Program, checkpoints: Checkpoints, reporter: Reporter) -> TrainState:
    """The newest checkpoint, or fresh weights."""
    if not program.experiment.resume:
        return program.initial_state()
    state = checkpoints.restore(program.abstract_state)
    if state is None:
        reporter.print("no checkpoint to continue from: beginning")
        return program.initial_state()
    reporter.print(f"going on from the checkpoint of step {int(state.step)}")
    return state


def _is_due(experiment: Experiment, what: str, step: int) -> bool:
    """Whether `step` is one at which the run logs, evaluates or saves a checkpoint."""
    every = getattr(experiment, f"{what}_every")
    if every is None:
        steps = experiment.steps
        every = max(1, steps // 100) if what == "log" else max(1, min(steps // 10, 1000))
    return step % every == 0
