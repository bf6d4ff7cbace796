"""Two steps of every task on the device, and a run that goes on from a checkpoint."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmodels.training.draws import Draws
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.mesh import MeshConfig, distribute
from jaxmodels.training.run.checkpoints import Checkpoints
from jaxmodels.training.run.program import Program
from tests.training.small_tasks import TASKS


class Run:
    """A task with its compiled step, on one device."""

    def __init__(self, name: str, precision: Any) -> None:
        self.task = TASKS[name]()
        experiment = Experiment(
            workdir=Path("unused"), steps=10, batch_size=8, precision=precision, mesh=MeshConfig(data=1)
        )
        self.program = Program(experiment, self.task)
        self.step = self.program.step()

    def steps(self, state: Any, first: int, count: int) -> tuple[Any, list[float]]:
        """The state after some steps, each with examples of its own, and their losses."""
        losses = []
        for number in range(first, first + count):
            indices = 8 * number + np.arange(8)
            batch = self.task.batch(indices % self.task.examples, Draws(0, indices))
            state, metrics = self.step(state, {k: distribute(self.program.mesh, v) for k, v in batch.items()})
            losses.append(float(metrics["loss"]))
        return state, losses


@pytest.mark.parametrize("name", TASKS)
def test_two_steps(name: str, device: jax.Device) -> None:
    run = Run(name, "bfloat16")
    before = run.program.initial_state()
    weights = jax.tree.map(np.asarray, before.parameters)
    after, losses = run.steps(before, 0, 2)
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
    assert {leaf.device for leaf in jax.tree.leaves(after.parameters)} == {device}
    for path, new in jax.tree.leaves_with_path(after.parameters):
        assert new.dtype == jnp.float32
        assert jnp.isfinite(new).all(), path
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (weights, after.parameters)), strict=True)
    ]
    assert np.mean(moved) > 0.9


def test_resume(tmp_path: Path) -> None:
    run = Run("hourglass", "float32")
    state, _ = run.steps(run.program.initial_state(), 0, 2)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, {})
    checkpoints.wait()
    restored = checkpoints.restore(run.program.abstract_state)
    checkpoints.close()
    assert restored is not None
    for kept, read in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(_values(read), _values(kept))
    _, unbroken = run.steps(state, 2, 2)
    _, resumed = run.steps(restored, 2, 2)
    # A GPU adds up the gradient of an embedding in any order.
    np.testing.assert_allclose(resumed, unbroken, rtol=1e-5)


def _values(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
