"""The JAX side as a call to be timed: a forward pass or a training step, compiled by `jax.jit`. Free of PyTorch."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxmodels.benchmark.kinds import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Mode
from jaxmodels.compare.adapters import as_nnx, call_bound
from jaxmodels.compare.calls import call_model
from jaxmodels.compare.outputs import mean_square, named_leaves


class JaxSide:
    """One model, ready to be called again and again.

    Args:
      model: an `nnx.Module` or whatever `Pair.ours` takes, in evaluation mode.
      inputs: arrays in the model's own layout.
      mode: "forward", or "train": one step of AdamW. Parameters, optimiser and loss are float32.
      call: runs the model on the inputs.
      loss: a scalar from the model and the inputs; by default the mean of the squared outputs.
      learned: paths of the variables that a step changes; by default all of type `nnx.Param`.
    """

    def __init__(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        mode: Mode,
        *,
        call: Callable[..., Any] = call_model,
        loss: Callable[..., Any] | None = None,
        learned: Collection[str] | None = None,
    ) -> None:
        self.mode = mode
        self.inputs = [jnp.asarray(value) for value in inputs.values()]
        names = list(inputs)  # JAX sorts the keys of a dict
        is_learned: Any = nnx.Param
        if learned is not None:
            is_learned = lambda path, _: ".".join(map(str, path)) in learned  # noqa: E731
        graphdef, *states = nnx.split(as_nnx(model), is_learned, ...)
        # Lists are cheap to pass to a compiled function; states of thousands of variables are not.
        (params, params_tree), (self.rest, rest_tree) = map(jax.tree.flatten, states)
        # A step gives its parameters away, and the model may be used again.
        self.params = [array.copy() for array in params] if mode == "train" else params
        tx = optax.adamw(LEARNING_RATE, *BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
        self.moments = jax.jit(tx.init)(self.params) if mode == "train" else None

        def run(function: Callable[..., Any], params: list, rest: list, values: list) -> Any:
            states = jax.tree.unflatten(params_tree, params), jax.tree.unflatten(rest_tree, rest)
            # A copy, so that a call may change what is no parameter, such as the statistics of a BatchNorm.
            model = nnx.merge(graphdef, *states, copy=True)
            return call_bound(function, model, dict(zip(names, values, strict=True)))

        def outputs(params: list, rest: list, values: list) -> Any:
            return named_leaves(run(call, params, rest, values))

        def loss_of(params: list, rest: list, values: list) -> Any:
            if loss is None:
                return mean_square(outputs(params, rest, values))
            return run(loss, params, rest, values).reshape(())

        def step(params: list, moments: Any, rest: list, values: list) -> tuple:
            value, gradients = jax.value_and_grad(loss_of)(params, rest, values)
            updates, moments = tx.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments, value

        self._forward, self._step = jax.jit(outputs), jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> Any:
        """Runs one forward pass or training step to its end; returns the outputs, or the loss before the step."""
        if self.mode == "forward":
            return jax.block_until_ready(self._forward(self.params, self.rest, self.inputs))
        self.params, self.moments, value = self._step(self.params, self.moments, self.rest, self.inputs)
        jax.block_until_ready(self.params)
        return value

    def lowered(self) -> Any:
        """The program before compilation."""
        if self.mode == "forward":
            return self._forward.lower(self.params, self.rest, self.inputs)
        return self._step.lower(self.params, self.moments, self.rest, self.inputs)
