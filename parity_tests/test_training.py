"""The training tasks in PyTorch: the same loss, the same metrics from exported weights, and a plain loop that learns."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxmodels as jm
from jaxmodels.compare.torch_training import TorchTask, train_torch
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.functional_model import FunctionalModel
from jaxmodels.training.mesh import MeshConfig
from jaxmodels.training.optimizer import OptimizerConfig
from jaxmodels.training.run.loop import train
from jaxmodels.training.task import Task
from tests.training.small_tasks import TASKS, inputs_of


class Sides:
    """A task with one set of weights on both sides, away from their initial values."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task

        def make() -> nnx.Module:
            return task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(1))

        self.functional = FunctionalModel(make)
        fresh = self.functional.split(make())
        random = np.random.default_rng(0)
        self.parameters = {
            name: value + 0.05 * random.normal(size=value.shape).astype(np.float32)
            for name, value in fresh.items()
        }
        exported = task.export(self.functional.merge(self.parameters))
        jm.save_pretrained(exported.model, folder, decoder=exported.decoder)
        self.theirs = TorchTask(task).load(folder)

    def call(self, name: str, batch: dict[str, np.ndarray]) -> Any:
        function = jax.jit(lambda p, b: self.task.functions[name](self.functional.merge(p), b))
        return jax.tree.map(np.asarray, function(self.parameters, batch))

    def batch(self) -> dict[str, np.ndarray]:
        return inputs_of(self.task, range(8))


@pytest.fixture(params=TASKS)
def sides(request: pytest.FixtureRequest, tmp_path: Path) -> Sides:
    return Sides(TASKS[request.param](), tmp_path)


def test_loss_and_metrics(sides: Sides) -> None:
    """Accuracies and recalls are counts: among 40 images no two sides may disagree about one."""
    task, batch = sides.task, sides.batch()

    def total(parameters: Any, batch: Any) -> Any:
        model = sides.functional.merge(parameters)
        return task.loss(model, task.forward(model, batch, None))[0]

    theirs = sides.theirs.loss({key: torch.from_numpy(value) for key, value in batch.items()})
    np.testing.assert_allclose(jax.jit(total)(sides.parameters, batch), theirs.item(), rtol=2e-6)
    ours = task.evaluate(sides.call, "test")
    others = task.evaluate(sides.theirs.call, "test")
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        assert others[name] == pytest.approx(value, rel=1e-5), name


class ExperimentWithTask(Experiment):
    """An experiment on a task that is there already."""

    def task(self) -> Task:
        return TASKS["scalable_vit"]()


def test_trained_in_jax_scored_in_pytorch(tmp_path: Path) -> None:
    experiment = ExperimentWithTask(
        workdir=tmp_path / "run",
        steps=30,
        batch_size=16,
        mesh=MeshConfig(data=1),
        evaluate_every=30,
        optim=OptimizerConfig(learning_rate=5e-3),
    )
    assert train(experiment) == 0
    task = experiment.task()
    theirs = TorchTask(task).load(tmp_path / "run" / "model")
    ours = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    scored = task.evaluate(theirs.call, "test")
    assert scored["top1"] == ours["top1"]
    assert scored["loss"] == pytest.approx(ours["loss"], rel=1e-5)

    losses: list[float] = []
    trained = train_torch(experiment, task, progress=lambda step, loss: losses.append(loss))
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    again: list[float] = []
    train_torch(experiment, task, progress=lambda step, loss: again.append(loss))
    np.testing.assert_allclose(again, losses, rtol=1e-4)
    assert 0 <= task.evaluate(trained.call, "test")["top1"] <= 1


def test_the_same_parameters_are_decayed() -> None:
    for name, make in TASKS.items():
        twin = TorchTask(make())
        decayed, other = twin.parameter_groups(0.1)
        count = len(list(twin.model.parameters())) + (2 if twin.decoder is not None else 0)
        assert len(decayed["params"]) + len(other["params"]) == count, name
        assert all(parameter.ndim >= 2 for parameter in decayed["params"]), name
        assert decayed["params"], name
