"""Both sides of a pair as calls to be timed: the forward pass, or a training step of AdamW, in evaluation mode."""

import copy
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import torch
from flax import nnx

from jaxmodels.benchmark.kinds import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Device, Mode
from jaxmodels.benchmark.measuring import as_numpy
from jaxmodels.compare.calls import arguments, call_model
from jaxmodels.compare.outputs import axes_of, mean_square, named_leaves, to_our_axes
from jaxmodels.compare.pair import Pair
from jaxmodels.compare.preparation import Subject, as_jax_arrays, as_tensors
from jaxmodels.compare.steps import split_learned


class JaxSide:
    """The JAX model, compiled by `jax.jit`.

    Args:
      subject: from `prepare`, in float32.
      mode: "forward" or "train".
    """

    def __init__(self, subject: Subject, mode: Mode) -> None:
        pair, self.mode = subject.pair, mode
        self.inputs = as_jax_arrays(pair, subject.inputs)
        names = list(self.inputs)  # JAX sorts the keys of a dict
        graphdef, params, self.rest = split_learned(pair)
        self.params = jax.tree.map(lambda x: x.copy(), params)  # a step gives its own away
        tx = optax.adamw(LEARNING_RATE, *BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
        self.moments = jax.jit(tx.init)(self.params) if mode == "train" else None

        def outputs(params: Any, rest: Any, values: list) -> Any:
            model = nnx.merge(graphdef, params, rest, copy=True)
            return named_leaves(pair.call_ours(model, dict(zip(names, values, strict=True))))

        def loss(params: Any, rest: Any, values: list) -> Any:
            if pair.loss_ours is None:
                return mean_square(outputs(params, rest, values))
            model = nnx.merge(graphdef, params, rest, copy=True)
            return pair.loss_ours(model, dict(zip(names, values, strict=True))).reshape(())

        def step(params: Any, moments: Any, rest: Any, values: list) -> tuple:
            value, gradients = jax.value_and_grad(loss)(params, rest, values)
            updates, moments = tx.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments, value

        self._forward, self._step = jax.jit(outputs), jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> Any:
        """Runs one forward pass or training step to its end; returns the outputs, or the loss before the step."""
        values = list(self.inputs.values())
        if self.mode == "forward":
            return jax.block_until_ready(self._forward(self.params, self.rest, values))
        self.params, self.moments, value = self._step(self.params, self.moments, self.rest, values)
        jax.block_until_ready(self.params)
        return value

    def lowered(self) -> Any:
        """The program before compilation."""
        values = list(self.inputs.values())
        if self.mode == "forward":
            return self._forward.lower(self.params, self.rest, values)
        return self._step.lower(self.params, self.moments, self.rest, values)


class TorchSide:
    """The PyTorch model, eager or compiled by `torch.compile`.

    Args:
      subject: from `prepare`, in float32.
      mode: "forward" or "train".
      compiled: the call of the model is compiled; in training, the pair's own loss where it has one.
      device: "cpu" or "cuda".
    """

    def __init__(self, subject: Subject, mode: Mode, *, compiled: bool, device: Device = "cpu") -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.mode, self.device = mode, device
        # Inference needs no gradients, and FlopCounterMode fails on parameters that require them.
        self.model = copy.deepcopy(subject.models["float32"]).to(device).requires_grad_(mode == "train")
        inputs = {name: tensor.to(device) for name, tensor in as_tensors(subject.inputs).items()}
        self.function = _torch_function(subject.pair, self.model, inputs, mode, compiled=compiled)
        if mode == "train":
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(),
                lr=LEARNING_RATE,
                betas=BETAS,
                eps=EPSILON,
                weight_decay=WEIGHT_DECAY,
                fused=True,
            )

    def __call__(self) -> Any:
        """Runs one forward pass or training step to its end; returns the outputs, or the loss before the step."""
        if self.mode == "forward":
            with torch.inference_mode():
                value = self.function()
        else:
            value = self.function()
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            value = value.detach()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return value


def _torch_function(
    pair: Pair, model: torch.nn.Module, inputs: dict[str, torch.Tensor], mode: Mode, *, compiled: bool
) -> Callable[[], Any]:
    """The outputs or the loss. Which input is which argument is found before anything is compiled."""
    build = torch.compile if compiled else lambda function: function
    if mode == "train" and pair.loss_theirs is not None:
        loss = build(pair.loss_theirs)
        return lambda: loss(model, inputs).reshape(())
    if pair.call_theirs is call_model:
        args, kwargs = arguments(model, inputs)
        plain = build(lambda model, args, kwargs: model(*args, **kwargs))

        def call() -> Any:
            return plain(model, args, kwargs)
    else:
        custom = build(pair.call_theirs)

        def call() -> Any:
            return custom(model, inputs)

    return call if mode == "forward" else lambda: mean_square(call())


class Outputs:
    """What calls of both sides return, as arrays that can be compared."""

    def __init__(self, pair: Pair) -> None:
        self.output_axes = pair.output_axes
        self.names: list[str] = []  # PyTorch's, which is called first

    def as_arrays(self, value: Any) -> list[np.ndarray]:
        """The outputs, sorted by their names; or the loss."""
        leaves = named_leaves(value)
        self.names = self.names or sorted(leaves)
        return [as_numpy(leaves[name]) for name in sorted(leaves)]

    def aligned(self, values: list, reference: list) -> list[np.ndarray]:
        """PyTorch's outputs in JAX's axes."""
        axes = [axes_of(self.output_axes, name) for name in self.names]
        known = [*axes, *axes][: len(reference)]  # of a training step, the loss and its decrease
        return [to_our_axes(*each) for each in zip(reference, values, known, strict=True)]
