"""The torchax side: the code of the PyTorch twin, traced and compiled by JAX."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
import torchax
import torchax.amp
from torchax import interop
from torchax.ops import mappings

from jaxmodels.benchmark.kinds import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Mode, Precision
from jaxmodels.benchmark.torch_side import as_tensors
from jaxmodels.compare.calls import call_model
from jaxmodels.compare.outputs import mean_square


class TorchaxSide:
    """One model, ready to be called again and again; arguments as for `TorchSide`.

    A training step is one program with donated buffers, as on the JAX side, with the same `optax.adamw`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        mode: Mode,
        precision: Precision,
        *,
        call: Callable[..., Any] = call_model,
        loss: Callable[..., Any] | None = None,
    ) -> None:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        tied = _tied(model)
        model.requires_grad_(False)  # JAX differentiates
        loss = loss or (lambda model, inputs: mean_square(call(model, inputs)))
        environment = torchax.default_env()
        # torchax takes this function of two types for an operator, and has none of that name.
        environment.override_op_definition(torch.ops.aten.promote_types, promote_types)
        with environment:
            tensors = {name: value.to("jax") for name, value in as_tensors(inputs).items()}
            module = interop.JittableModule(model.to("jax"))

        def run(function: Any, parameters: Any, buffers: Any, tensors: Any) -> Any:
            autocast: Any = contextlib.nullcontext()
            if precision == "bfloat16":
                autocast = torchax.amp.autocast("jax", torch.bfloat16, environment)
            known = {**parameters, **buffers}
            known |= {name: known[first] for name, first in tied.items()}
            with environment, autocast:
                return module.functional_call(function, known, {}, tensors)

        def step(parameters: Any, moments: Any, buffers: Any, tensors: Any) -> tuple:
            function = jax.value_and_grad(interop.jax_view(functools.partial(run, loss)))
            value, gradients = function(parameters, buffers, tensors)
            updates, moments = tx.update(gradients, moments, parameters)
            return optax.apply_updates(parameters, updates), moments, value

        tx = optax.adamw(LEARNING_RATE, *BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
        arrays = interop.jax_view({**module.params, **module.buffers})  # ty: ignore[invalid-argument-type]
        self.parameters = {name: value for name, value in arrays.items() if name in trained}
        self.buffers = {n: value for n, value in arrays.items() if n not in trained and n not in tied}
        self.inputs = interop.jax_view(tensors)
        self.mode = mode
        self.moments = tx.init(self.parameters) if mode == "train" else None
        self._forward = jax.jit(interop.jax_view(functools.partial(run, call)))
        self._step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> jax.Array:
        """Runs one forward pass or training step to its end; returns the outputs, or the loss before the step."""
        if self.mode == "forward":
            return jax.block_until_ready(self._forward(self.parameters, self.buffers, self.inputs))
        arguments = self.parameters, self.moments, self.buffers, self.inputs
        self.parameters, self.moments, value = self._step(*arguments)
        jax.block_until_ready(self.parameters)
        return value


def _tied(model: torch.nn.Module) -> dict[str, str]:
    """Every further name of a parameter, and its first one. torchax would keep them as constants."""
    first: dict[int, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    return {name: first[id(value)] for name, value in names if first.setdefault(id(value), name) != name}


def promote_types(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """`torch.promote_types`, by the same rules of JAX: PyTorch's own function would come back to torchax."""
    return mappings.j2t_dtype(jnp.promote_types(mappings.t2j_dtype(first), mappings.t2j_dtype(second)))
