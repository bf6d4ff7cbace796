"""On one device or on eight the five tasks compute the same, and parameters are on the devices they should be on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from jaxmodels.training.batches import batches
from jaxmodels.training.draws import Draws
from jaxmodels.training.functional_model import FunctionalModel
from jaxmodels.training.mesh import (
    MeshConfig,
    batch_sharding,
    gather_sharding,
    make_mesh,
    parameter_sharding,
    replicated,
)
from jaxmodels.training.step import TrainState, initial_state, loss_and_gradient, make_step
from jaxmodels.training.task import Task
from tests.training.small_tasks import TASKS


ONE, EIGHT = MeshConfig(data=1), MeshConfig(data=2, fsdp=4)
STEPS = 3


def sharded(task: Task, config: MeshConfig, dtype: Any) -> tuple[Any, TrainState, Any]:
    """The compiled step, the sharded initial state, and the stream of batches."""
    mesh = make_mesh(config)

    def make() -> nnx.Module:
        return task.model(dtype=None, param_dtype=dtype, rngs=nnx.Rngs(0))

    functional, tx = FunctionalModel(make), optax.adamw(1e-3)

    def initial() -> TrainState:
        return initial_state(functional, make, tx, average=False)

    places = jax.tree.map(lambda x: parameter_sharding(mesh, x.shape), jax.eval_shape(initial))
    step = jax.jit(
        make_step(task, functional, tx, key=jax.random.key(0), gathered=gather_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )
    stream = batches(task, batch_size=16, seed=0, sharding=batch_sharding(mesh))
    return step, jax.jit(initial, out_shardings=places)(), stream


def losses(task: Task, config: MeshConfig, dtype: Any) -> list[float]:
    step, state, stream = sharded(task, config, dtype)
    values = []
    for _, batch in zip(range(STEPS), stream, strict=False):
        state, metrics = jax.block_until_ready(step(state, batch))
        values.append(float(metrics["loss"]))
    return values


@pytest.mark.parametrize("name", TASKS)
def test_one_device_and_eight(name: str) -> None:
    task = TASKS[name]()
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            losses(task, EIGHT, jnp.float64), losses(task, ONE, jnp.float64), rtol=1e-10, err_msg="float64"
        )


def test_one_device_and_eight_in_float32() -> None:
    """MaMMUT alone, whose loss compares all images: the others would show nothing that float64 does not."""
    task = TASKS["mammut"]()
    np.testing.assert_allclose(
        losses(task, EIGHT, jnp.float32), losses(task, ONE, jnp.float32), rtol=1e-5, err_msg="float32"
    )


def test_parameters_and_moments_are_cut() -> None:
    step, state, stream = sharded(TASKS["hourglass"](), EIGHT, jnp.float32)
    state, _ = step(state, next(stream))
    for tree in (state.parameters, state.optimizer[0].mu, state.optimizer[0].nu):
        table = tree["token_emb.embedding"]
        assert table.shape == (256, 32)
        assert {shard.data.shape for shard in table.addressable_shards} == {(64, 32)}
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    held = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
    )  # by one of the devices
    assert held < total / 3


def test_parameters_are_gathered_and_activations_stay(capfd: pytest.CaptureFixture[str]) -> None:
    """Without it the compiler cuts MaMMUT's activations like its parameters, and says that this is costly."""
    step, state, stream = sharded(TASKS["mammut"](), EIGHT, jnp.float32)
    program = step.lower(state, next(stream))
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache says nothing
    compilation_cache.reset_cache()
    try:
        program.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
    assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["mammut", "glom"])
def test_accumulation_is_exact_for_real_tasks(name: str) -> None:
    """MaMMUT's contrastive loss compares all images of the batch, its caption loss divides by all its bytes."""
    task = TASKS[name]()

    def make() -> nnx.Module:
        return task.model(dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

    functional = FunctionalModel(make)
    parameters = functional.split(make())
    batch = task.batch(np.arange(8), Draws(0, np.arange(8)))
    key = jax.random.key(0)
    loss, _, whole = jax.jit(loss_and_gradient(task, functional))(parameters, batch, key)
    loss2, _, parts = jax.jit(loss_and_gradient(task, functional, accumulate=4))(parameters, batch, key)
    np.testing.assert_allclose(loss2, loss, rtol=1e-6)
    norm = float(optax.tree.norm(whole))
    for parameter in whole:
        np.testing.assert_allclose(
            parts[parameter], whole[parameter], rtol=0, atol=2e-6 * norm, err_msg=parameter
        )
