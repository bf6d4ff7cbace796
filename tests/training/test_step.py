"""One optimiser step: exact accumulation, resuming, failing without damage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxmodels.training.draws import Draws
from jaxmodels.training.functional_model import FunctionalModel
from jaxmodels.training.step import initial_state, loss_and_gradient, loss_of_outputs, make_step, unhealthy
from tests.training.toy_task import ToyTask


KEY = jax.random.key(3)


class Trainer:
    """A compiled step and its first state."""

    def __init__(
        self, task: ToyTask, *, average: bool = False, dtype=None, rate: float = 1e-2, **options
    ) -> None:
        self.task = task

        def make() -> nnx.Module:
            return task.model(dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(0))

        self.functional = FunctionalModel(make)
        tx = optax.adamw(rate)
        self.state = initial_state(self.functional, make, tx, average=average)
        self.step = jax.jit(make_step(task, self.functional, tx, key=KEY, **options))

    def run(self, state, batches):
        losses = []
        for batch in batches:
            state, metrics = self.step(state, batch)
            losses.append(float(metrics["loss"]))
        return state, losses


def batch_of(task: ToyTask, seed: int, size: int = 8) -> dict[str, np.ndarray]:
    indices = np.random.default_rng(seed).integers(0, task.examples, size)
    return task.batch(indices, Draws(seed, np.arange(size)))


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradient_is_that_of_the_large_batch(parts: int) -> None:
    """Also for a loss that couples all examples, where the mean of the gradients of the parts is far away."""
    trainer = Trainer(ToyTask())
    parameters, batch = trainer.state.parameters, batch_of(trainer.task, 0)
    whole = jax.jit(loss_and_gradient(trainer.task, trainer.functional))
    loss, metrics, gradients = whole(parameters, batch, KEY)
    in_parts = jax.jit(loss_and_gradient(trainer.task, trainer.functional, accumulate=parts))
    loss2, metrics2, gradients2 = in_parts(parameters, batch, KEY)
    np.testing.assert_allclose(loss2, loss, rtol=1e-6)
    np.testing.assert_allclose(metrics2["size"], metrics["size"], rtol=1e-6)
    norm = float(optax.tree.norm(gradients))
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradients2[name], gradient, rtol=0, atol=1e-6 * norm, err_msg=name)

    separate = [
        whole(parameters, jax.tree.map(lambda x, i=i: x[i::parts], batch), KEY)[2] for i in range(parts)
    ]
    naive = jax.tree.map(lambda *each: sum(each) / parts, *separate)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, naive, gradients))) > 0.05 * norm


class Separable(ToyTask):
    """A loss that is a mean over the examples."""

    def forward(self, model, batch, rngs):
        return {"loss": jnp.square(model(batch["images"], rngs=rngs)).sum(axis=1)}

    def loss(self, model, outputs):
        return jnp.mean(outputs["loss"]), {}


def test_a_separable_loss_needs_no_first_pass(full_optimisation: None) -> None:
    loops = {}
    for task in (ToyTask(), Separable()):
        trainer = Trainer(task)
        function = jax.jit(loss_and_gradient(task, trainer.functional, accumulate=4))
        compiled = function.lower(trainer.state.parameters, batch_of(task, 0), KEY).compile()
        loops[type(task)] = compiled.as_text().count(" while(")
    assert loops[Separable] < loops[ToyTask]


def test_rematerialisation_changes_no_gradient() -> None:
    trainer = Trainer(ToyTask(patch_dropout=0.5))
    arguments = trainer.state.parameters, batch_of(trainer.task, 0), KEY
    *_, plain = jax.jit(loss_and_gradient(trainer.task, trainer.functional))(*arguments)
    *_, remat = jax.jit(loss_and_gradient(trainer.task, trainer.functional, remat=True))(*arguments)
    norm = float(optax.tree.norm(plain))
    for name in plain:
        np.testing.assert_allclose(remat[name], plain[name], rtol=0, atol=1e-6 * norm, err_msg=name)


def test_rematerialisation_keeps_less() -> None:
    """What is kept for the backward pass."""
    trainer = Trainer(ToyTask())
    batch = batch_of(trainer.task, 0)

    def kept(remat: bool) -> int:
        forward, total = loss_of_outputs(trainer.task, trainer.functional, remat=remat)

        def residuals(parameters, batch):
            return jax.vjp(lambda p: total(p, forward(p, batch, KEY))[0], parameters)[1]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, trainer.state.parameters, batch))
        return sum(leaf.size for leaf in leaves)

    assert kept(remat=True) < 0.7 * kept(remat=False)


def test_resuming_is_exact() -> None:
    """Dropout included: its key depends on the step alone."""
    trainer = Trainer(ToyTask(patch_dropout=0.5))
    batches = [batch_of(trainer.task, seed) for seed in range(6)]
    half, _ = trainer.run(trainer.state, batches[:3])
    unbroken, losses = trainer.run(half, batches[3:])
    again = Trainer(ToyTask(patch_dropout=0.5))
    resumed, losses_again = again.run(jax.tree.map(jnp.copy, half), batches[3:])
    assert losses == losses_again
    assert jax.tree.all(jax.tree.map(jnp.array_equal, unbroken, resumed))


def test_dropout_differs_from_step_to_step() -> None:
    trainer = Trainer(ToyTask(patch_dropout=0.5), rate=1e-30)
    batch = batch_of(trainer.task, 0)
    _, losses = trainer.run(trainer.state, [batch, batch])
    assert losses[0] != losses[1]


def test_training_learns() -> None:
    trainer = Trainer(ToyTask())
    _, losses = trainer.run(trainer.state, [batch_of(trainer.task, 0)] * 30)
    assert losses[-1] < 0.6 * losses[0]


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    trainer = Trainer(ToyTask(), average=True, ema_decay=0.9)
    good = batch_of(trainer.task, 0)
    bad = {**good, "images": np.full_like(good["images"], np.inf)}
    before, _ = trainer.run(trainer.state, [good])
    after, (loss, _) = trainer.run(before, [bad, good])
    assert not np.isfinite(loss)
    assert bool(after.failed)
    assert not bool(before.failed)
    for name in ("step", "parameters", "optimizer", "average"):
        same = jax.tree.map(jnp.array_equal, getattr(before, name), getattr(after, name))
        assert jax.tree.all(same), name
    assert unhealthy(trainer.task, trainer.functional, after.parameters, bad, KEY)["batch"] == ["images"]


def test_the_bad_parameter_is_named() -> None:
    trainer = Trainer(ToyTask())
    name = "transformer.blocks.0.ff.up.kernel"
    parameters = {**trainer.state.parameters, name: trainer.state.parameters[name].at[0, 0].set(jnp.nan)}
    found = unhealthy(trainer.task, trainer.functional, parameters, batch_of(trainer.task, 0), KEY)
    assert found["parameters"] == [name]
    assert found["batch"] == []
    assert not np.isfinite(found["loss"])


def test_moving_average() -> None:
    trainer = Trainer(ToyTask(), average=True, ema_decay=0.75)
    batches = [batch_of(trainer.task, seed) for seed in range(2)]
    first, _ = trainer.run(trainer.state, batches[:1])
    second, _ = trainer.run(first, batches[1:])
    name = "linear_head.kernel"
    start, one, two = (state.parameters[name] for state in (trainer.state, first, second))
    np.testing.assert_allclose(first.average[name], 0.75 * start + 0.25 * one, rtol=1e-6)
    np.testing.assert_allclose(
        second.average[name], 0.75 * (0.75 * start + 0.25 * one) + 0.25 * two, rtol=1e-6
    )


def test_bfloat16_computes_and_float32_is_kept() -> None:
    trainer = Trainer(ToyTask(), dtype=jnp.bfloat16)
    state, metrics = trainer.step(trainer.state, batch_of(trainer.task, 0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} <= {"float32", "int32", "bool"}
    assert metrics["loss"].dtype == jnp.float32
    float32 = Trainer(ToyTask())
    exact = float32.step(float32.state, batch_of(float32.task, 0))[1]["loss"]
    assert metrics["loss"] != exact
    np.testing.assert_allclose(metrics["loss"], exact, rtol=0.03)
