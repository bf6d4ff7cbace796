"""The end of a run: test data, baselines, the model as a hub folder, and the report."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib

from jaxmodels import pages
from jaxmodels.convert.hub import save_pretrained
from jaxmodels.training.mesh import barrier
from jaxmodels.training.run.program import Program
from jaxmodels.training.run.progress import Reporter, metrics_text
from jaxmodels.training.run.report import write_report
from jaxmodels.training.run.tensorboard import TensorBoard
from jaxmodels.training.run.workdir import Workdir, environment, naming
from jaxmodels.training.step import TrainState


def finish(
    program: Program,
    state: TrainState,
    workdir: Workdir,
    reporter: Reporter,
    *,
    preset: str,
    data: Mapping[str, Any],
    seconds: float,
) -> None:
    """Evaluates the trained model and writes model/, results.json and report.html.

    Every process computes; the first one writes.
    """
    task = program.task
    reporter.print("evaluating on the test data")
    call = program.evaluation(state)
    metrics = task.evaluate(call, "test")
    with matplotlib.rc_context(pages.plot_settings()):
        samples = task.samples(call)
    exported = task.export(program.trained_model(state))
    if workdir.writes:
        reporter.print("computing the baselines")
        baselines = task.baselines()
        with naming(workdir.model):
            save_pretrained(
                exported.model,
                workdir.model,
                preprocessing=exported.preprocessing,
                decoder=exported.decoder,
            )
        results = {
            "task": task.name,
            "metric": {"name": task.metric.name, "better": task.metric.better},
            "test": metrics,
            "baselines": baselines,
            "parameters": sum(math.prod(v.shape) for v in state.parameters.values()),
            "steps": int(state.step),
            "seconds": round(seconds, 2),
            "environment": environment(),
            "sessions": workdir.read_run()["sessions"],
        }
        workdir.write_results(results)
        with naming(workdir.report):
            write_report(workdir, preset, program.experiment, task, data, results, samples)
        if program.experiment.tensorboard:
            tensorboard = TensorBoard(workdir.tensorboard)
            tensorboard.samples(int(state.step), samples)
            tensorboard.close()
        reporter.print(f"test: {metrics_text(metrics)}")
        for name, values in baselines.items():
            reporter.print(f"  {name}: {metrics_text(values)}")
        reporter.print(f"model: {workdir.model}  report: {workdir.report}")
    barrier("the run is finished")
