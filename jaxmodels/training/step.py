"""One optimiser step: a pure function of the state and a batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Int, Key, PyTree

from jaxmodels.training.functional_model import FunctionalModel
from jaxmodels.training.task import Batch, Task


GATHERED = "gathered parameters"

Parameters = dict[str, Array]
Metrics = dict[str, Array]
Forward = Callable[[Parameters, Mapping[str, Array], Array], dict[str, Array]]
Total = Callable[[Parameters, Mapping[str, Array]], tuple[Array, Metrics]]
Step = Callable[["TrainState", Mapping[str, Array]], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """Everything that a run needs to continue; nothing else changes from step to step."""

    step: Int[Array, ""]
    parameters: Parameters
    optimizer: PyTree
    average: Parameters | None  # moving average of the parameters
    failed: Bool[Array, ""]  # a loss or gradient was not finite; the rest is as before that step


def initial_state(
    functional: FunctionalModel,
    make: Callable[[], nnx.Module],
    tx: optax.GradientTransformation,
    *,
    average: bool,
) -> TrainState:
    """The state before the first step. Under `jax.jit` each array is created on its own device."""
    parameters = functional.split(make())
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        optimizer=tx.init(parameters),
        average=jax.tree.map(jnp.copy, parameters) if average else None,
        failed=jnp.zeros((), bool),
    )


def make_step(
    task: Task,
    functional: FunctionalModel,
    tx: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    accumulate: int = 1,
    learning_rate: optax.Schedule = lambda step: jnp.nan,
    ema_decay: float = 0.0,
    remat: bool = False,
    gathered: Sharding | None = None,
) -> Step:
    """The function of one step; the caller compiles it and donates the state.

    A step whose loss or gradient is not finite changes nothing but `failed`, and neither does any later one.

    Args:
      task: gives the loss.
      functional: the structure of the task's model.
      tx: the update rule.
      key: random key of dropout; the step number is folded in, so that a resumed run repeats an unbroken one.
      accumulate: parts into which the batch is cut to save memory; the gradient is that of the whole batch.
      learning_rate: the schedule inside `tx`, for the log.
      ema_decay: decay of the moving average, if the state has one.
      remat: recompute activations in the backward pass, all but the inputs of layers.
      gathered: where parameters that are cut over devices go for their use; None leaves that to the compiler.
    """
    gradient = loss_and_gradient(task, functional, accumulate=accumulate, remat=remat, gathered=gathered)

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        loss, metrics, gradients = gradient(state.parameters, batch, jax.random.fold_in(key, state.step))
        norm = optax.tree.norm(gradients)
        updates, moments = tx.update(gradients, state.optimizer, state.parameters)
        parameters: Any = optax.apply_updates(state.parameters, updates)
        average = state.average
        if average is not None:
            average = jax.tree.map(lambda a, p: ema_decay * a + (1 - ema_decay) * p, average, parameters)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm) & ~state.failed
        proposed = TrainState(state.step + 1, parameters, moments, average, state.failed)
        logged: Any = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": learning_rate(state.step),
            **metrics,
        }
        state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), proposed, state)
        return state._replace(failed=~ok), logged

    return step


def loss_and_gradient(
    task: Task,
    functional: FunctionalModel,
    *,
    accumulate: int = 1,
    remat: bool = False,
    gathered: Sharding | None = None,
) -> Callable[[Parameters, Mapping[str, Array], Array], tuple[Array, Metrics, Parameters]]:
    """(loss, metrics, gradient) of a batch, computed in `accumulate` parts.

    Exact for any loss, also for one that couples the examples: the outputs of all parts are computed first,
    the loss of them all gives each part its cotangent, and then part after part is differentiated. Where the
    loss is a plain sum over examples the cotangents do not depend on the outputs, and XLA drops the first
    pass.
    """

    forward, total = loss_of_outputs(task, functional, remat=remat, gathered=gathered)

    def at_once(parameters, batch, key):
        (loss, metrics), gradients = jax.value_and_grad(
            lambda parameters: total(parameters, forward(parameters, batch, key)), has_aux=True
        )(parameters)
        return loss, metrics, gradients

    def in_parts(parameters, batch, key):
        parts = jax.tree.map(lambda x: _cut(x, accumulate), batch)
        keys = jax.random.split(key, accumulate)
        _, outputs = jax.lax.scan(lambda _, part: (None, forward(parameters, *part)), None, (parts, keys))
        gradients, cotangents = jax.grad(lambda p, o: total(p, o)[0], argnums=(0, 1))(
            parameters, jax.tree.map(_join, outputs)
        )

        def add(gradients, part):
            *arguments, cotangent = part
            outputs, pull = jax.vjp(lambda parameters: forward(parameters, *arguments), parameters)
            return jax.tree.map(jnp.add, gradients, pull(cotangent)[0]), outputs

        cotangents = jax.tree.map(lambda x: _cut(x, accumulate), cotangents)
        gradients, outputs = jax.lax.scan(add, gradients, (parts, keys, cotangents))
        loss, metrics = total(parameters, jax.tree.map(_join, outputs))
        return loss, metrics, gradients

    return at_once if accumulate == 1 else in_parts


def loss_of_outputs(
    task: Task, functional: FunctionalModel, *, remat: bool, gathered: Sharding | None = None
) -> tuple[Forward, Total]:
    """The two halves of the loss as functions of the parameters: outputs of some examples, loss of all outputs.

    With `gathered`, every device fetches the parameters for the forward pass and once more for the backward
    pass. Left to itself, the compiler cuts activations along with the parameters and moves those instead.
    """

    def forward(parameters: Parameters, part: Mapping[str, Array], key: Array) -> dict[str, Array]:
        if gathered is not None:
            parameters = checkpoint_name(jax.lax.with_sharding_constraint(parameters, gathered), GATHERED)
        model = functional.merge(parameters, training=True, remat=remat)
        outputs = task.forward(model, task.inputs(part), nnx.Rngs(dropout=key))
        return {name: _floating(value) for name, value in outputs.items()}

    if gathered is not None:
        policy = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
        forward = jax.checkpoint(forward, policy=policy)  # ty: ignore[invalid-assignment]

    def total(parameters: Parameters, outputs: Mapping[str, Array]) -> tuple[Array, Metrics]:
        return task.loss(functional.merge(parameters, training=True), outputs)

    return forward, total


def unhealthy(
    task: Task, functional: FunctionalModel, parameters: Parameters, batch: Batch, key: Array
) -> dict[str, Any]:
    """What is not finite in the step that failed: parts of the batch, parameters, gradients (names)."""
    loss, _, gradients = jax.jit(loss_and_gradient(task, functional))(parameters, batch, key)

    def names(arrays: Batch | Parameters) -> list[str]:
        finite = jax.jit(lambda arrays: {name: jnp.isfinite(x).all() for name, x in arrays.items()})(arrays)
        return [name for name, value in finite.items() if not bool(value)]

    return {
        "loss": float(loss),
        "batch": names(batch),
        "parameters": names(parameters),
        "gradients": names(gradients),
    }


def _floating(x: Array) -> Array:
    """Converts integer outputs, such as counts, to floats, which have a derivative."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def _cut(x: Array, parts: int) -> Array:
    """(b, …) → (parts, b / parts, …), with examples from all over the batch, so from every device, in each part."""
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def _join(x: Array) -> Array:
    """The inverse of `_cut`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
