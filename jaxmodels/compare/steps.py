"""A training run on each side: the same initial weights, the same batches, AdamW, and the loss before each step."""

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from jaxmodels.compare.pair import Inputs, Pair
from jaxmodels.convert.core import export
from jaxmodels.convert.torch_io import to_numpy


ADAMW: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}

DType = Literal["float32", "float64"]
Models = Mapping[DType, torch.nn.Module]
Arrays = dict[str, np.ndarray]
# What each router of a model chose, as `routing=` takes it.
Chosen = list[np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss before each step, on the batch of that step; empty where no step was made.

    Attributes:
      jax, pytorch: the two sides, in the compared type, from the same initial weights.
      pytorch_other_threads: PyTorch once more, with another number of threads.
      pytorch_float32, pytorch_float64: PyTorch in both types; one of them is `pytorch`.
      jax_weights_float32, jax_weights_float64: PyTorch again, but at JAX's weights before each step.
      threads: how many threads computed `pytorch`, and how many `pytorch_other_threads`.
    """

    jax: list[float] = field(default_factory=list)
    pytorch: list[float] = field(default_factory=list)
    pytorch_other_threads: list[float] = field(default_factory=list)
    pytorch_float32: list[float] = field(default_factory=list)
    pytorch_float64: list[float] = field(default_factory=list)
    jax_weights_float32: list[float] = field(default_factory=list)
    jax_weights_float64: list[float] = field(default_factory=list)
    threads: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.jax)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the runs leave behind; arrays have PyTorch's names and layout.

    Attributes:
      losses: of every run.
      gradients, weights: JAX's: at the first step, and after those steps after which weights are compared.
      their_gradients, their_weights: PyTorch's, by the type that it ran in.
    """

    losses: Losses
    gradients: Arrays
    weights: Arrays
    their_gradients: dict[DType, Arrays]
    their_weights: dict[DType, Arrays]


def train(
    pair: Pair,
    models: Models,
    *,
    dtype: DType,
    steps: int,
    weights_after: int,
    learning_rate: float,
    before_step: Callable[[int, Inputs, nnx.Module, Models], None],
) -> Training:
    """Trains JAX and three PyTorch models side by side: one in each type, and one with other threads.

    All routers, where there are any, choose at each step what those of the compared PyTorch model choose: left
    to themselves, runs part for good at the first toss-up that they decide differently.

    Args:
      pair: the Flax model, the batches and the losses.
      models: the PyTorch model in both types.
      dtype: in which of them JAX is compared with it.
      steps: of AdamW; at least 1.
      weights_after: the step, counted from 1, whose weights are kept.
      learning_rate: of AdamW.
      before_step: called with the number of each step, its inputs, the Flax model with the weights of the
        moment, and PyTorch with these same weights.

    Raises:
      ValueError: a batch that differs from `pair.inputs` in names or shapes.
    """
    here = torch.get_num_threads()
    elsewhere = 1 if here > 1 else 2
    theirs = {kind: TorchTrainer(pair, model, learning_rate, here) for kind, model in models.items()}
    other = TorchTrainer(pair, models[dtype], learning_rate, elsewhere)
    ours = FlaxTrainer(pair, learning_rate)
    copies = {kind: copy.deepcopy(model) for kind, model in models.items()}  # of JAX's weights
    at_jax_weights: dict[DType, list[float]] = {kind: [] for kind in models}
    kept: dict[str, Any] = {}
    for step in range(steps):
        inputs = cast(_batch(pair, step), dtype)
        weights = ours.weights()
        for model in copies.values():
            _set_weights(model, weights)
        before_step(step, inputs, ours.model, copies)
        chosen = _choice(pair, theirs[dtype].model, inputs)
        for kind, model in copies.items():
            with torch.no_grad():
                at_jax_weights[kind].append(_loss_theirs(pair, model, cast(inputs, kind), chosen).item())
        for kind, trainer in theirs.items():
            trainer.step(cast(inputs, kind), chosen)
        other.step(inputs, chosen)
        ours.step(inputs, chosen)
        if step == 0:
            kept["gradients"] = ours.gradients()
            kept["their_gradients"] = {kind: trainer.gradients() for kind, trainer in theirs.items()}
        if step + 1 == weights_after:
            kept["weights"] = ours.weights()
            kept["their_weights"] = {kind: trainer.weights() for kind, trainer in theirs.items()}
    losses = Losses(
        jax=ours.losses,
        pytorch=theirs[dtype].losses,
        pytorch_other_threads=other.losses,
        pytorch_float32=theirs["float32"].losses,
        pytorch_float64=theirs["float64"].losses,
        jax_weights_float32=at_jax_weights["float32"],
        jax_weights_float64=at_jax_weights["float64"],
        threads=(here, elsewhere),
    )
    return Training(losses=losses, **kept)


class TorchTrainer:
    """A copy of a PyTorch model under AdamW, and the losses so far."""

    def __init__(self, pair: Pair, model: torch.nn.Module, learning_rate: float, threads: int) -> None:
        self.pair, self.threads = pair, threads
        self.model = copy.deepcopy(model)
        self.losses: list[float] = []
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=learning_rate,
            betas=(ADAMW["b1"], ADAMW["b2"]),
            eps=ADAMW["eps"],
            weight_decay=ADAMW["weight_decay"],
        )

    def step(self, inputs: Inputs, chosen: Chosen | None) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with _threads(self.threads):
            loss = _loss_theirs(self.pair, self.model, inputs, chosen)
            loss.backward()
            for parameter in self.model.parameters():
                if parameter.grad is None:  # takes no part: a zero gradient, as in JAX
                    parameter.grad = torch.zeros_like(parameter)
            self.optimizer.step()
        self.losses.append(loss.item())

    def gradients(self) -> Arrays:
        """Those of the last step."""
        return {key: to_numpy(p.grad) for key, p in self.model.named_parameters() if p.grad is not None}

    def weights(self) -> Arrays:
        return {key: to_numpy(parameter) for key, parameter in self.model.named_parameters()}


class FlaxTrainer:
    """The parameters of a Flax model under AdamW, and the losses so far; the model itself keeps its own."""

    def __init__(self, pair: Pair, learning_rate: float) -> None:
        self.pair = pair
        graphdef, params, rest = nnx.split(pair.ours, nnx.Param, ...)
        optimizer = optax.adamw(learning_rate, **ADAMW)

        @jax.jit
        def update(params, moments, inputs, options):
            loss, gradients = jax.value_and_grad(
                lambda params: _loss_ours(pair, nnx.merge(graphdef, params, rest), inputs, options)
            )(params)
            updates, moments = optimizer.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments, loss, gradients

        self.update = update
        self.merge = lambda params: nnx.merge(graphdef, params, rest)
        self.params, self.moments = params, optimizer.init(params)
        self.losses: list[float] = []

    def step(self, inputs: Inputs, chosen: Chosen | None) -> None:
        options = {}
        if chosen is not None:
            options["routing"] = [None if indices is None else jnp.asarray(indices) for indices in chosen]
        self.params, self.moments, loss, self.last_gradients = self.update(
            self.params, self.moments, arrays(self.pair, inputs), options
        )
        self.losses.append(float(loss))

    @property
    def model(self) -> nnx.Module:
        """A model with the weights of the moment."""
        return self.merge(self.params)

    def gradients(self) -> Arrays:
        """Those of the last step."""
        return export(self.merge(self.last_gradients), self.pair.table)

    def weights(self) -> Arrays:
        return export(self.model, self.pair.table)


def cast(inputs: Mapping[str, Any], dtype: DType) -> Arrays:
    """The inputs as arrays, floating-point ones as `dtype`."""
    values = {key: np.asarray(value) for key, value in inputs.items()}
    return {k: v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v for k, v in values.items()}


def tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The inputs for PyTorch, sharing no memory with the arrays."""
    return {key: torch.from_numpy(value.copy()) for key, value in inputs.items()}


def arrays(pair: Pair, inputs: Inputs) -> dict[str, jax.Array]:
    """The inputs for JAX, in the Flax model's layout."""
    return {key: jnp.asarray(value) for key, value in pair.to_ours(inputs).items()}


def as_tuple(outputs: Any) -> tuple:
    """The outputs of a model that may return a single array."""
    return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


def _batch(pair: Pair, step: int) -> Inputs:
    if pair.batches is None:
        return pair.inputs
    batch = pair.batches(step)
    shapes, expected = ({key: np.shape(x) for key, x in part.items()} for part in (batch, pair.inputs))
    if shapes != expected:
        raise ValueError(
            f"batches({step}) must have the names and shapes of inputs, which are {expected}; got {shapes}"
        )
    return batch


def _choice(pair: Pair, model: torch.nn.Module, inputs: Inputs) -> Chosen | None:
    if pair.routing_ours is None or pair.routing_theirs is None:
        return None
    with torch.no_grad():
        routed = pair.routing_theirs(model, tensors(inputs))
    return [None if router.indices is None else to_numpy(router.indices) for router in routed]


def _set_weights(model: torch.nn.Module, weights: Arrays) -> None:
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in weights:  # a table need not cover what takes no part
                parameter.copy_(torch.from_numpy(weights[key]))


def _loss_theirs(pair: Pair, model: torch.nn.Module, inputs: Inputs, chosen: Chosen | None) -> torch.Tensor:
    options: dict[str, Any] = {}
    if chosen is not None:
        options["routing"] = [None if indices is None else torch.from_numpy(indices) for indices in chosen]
    if pair.loss_theirs is not None:
        return pair.loss_theirs(model, tensors(inputs), **options)
    return _mean_square(pair.call_theirs(model, tensors(inputs), **options))


def _loss_ours(
    pair: Pair, model: nnx.Module, inputs: Mapping[str, jax.Array], options: Mapping[str, Any]
) -> jax.Array:
    if pair.loss_ours is not None:
        return pair.loss_ours(model, inputs, **options)
    return _mean_square(pair.call_ours(model, inputs, **options))


def _mean_square(outputs: Any) -> Any:
    return sum((output * output).mean() for output in as_tuple(outputs))


@contextmanager
def _threads(count: int) -> Generator[None]:
    """PyTorch computes with `count` threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
