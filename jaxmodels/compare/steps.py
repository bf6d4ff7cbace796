"""A training run on each side: the same initial weights, batches and optimiser, and the loss before each step.

Where float32 models are compared the optimisers compute in float64 on both sides. What is compared are the
models; AdamW's own rounding (optax forms 1 - b2^step in float32, PyTorch in float64) would drown fresh biases.
Where optax's optimiser may be another than torch.optim's, PyTorch's updates both sides.
"""

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

from jaxmodels.compare.calls import PairError, failures_explained
from jaxmodels.compare.finite import require_finite_inputs
from jaxmodels.compare.noise import DType
from jaxmodels.compare.optax_optimizers import decay_mask, optax_optimizer
from jaxmodels.compare.optimizer_comparison import compare_optimizers
from jaxmodels.compare.outputs import mean_square
from jaxmodels.compare.pair import Inputs, Pair, parameters_of
from jaxmodels.compare.preparation import Models, as_jax_arrays, as_tensors, cast
from jaxmodels.compare.result import Losses, OptimizerComparison
from jaxmodels.compare.torch_mode import restore_statistics, statistics_of
from jaxmodels.compare.torch_optimizers import TorchOptimizer
from jaxmodels.compare.training import Training
from jaxmodels.compare.training_mode import begin_run
from jaxmodels.convert.core import export, fit, variable_at
from jaxmodels.convert.table import Tied
from jaxmodels.convert.torch_io import to_numpy


# On how many batches' gradients the two optimisers are compared.
OPTIMIZER_BATCHES = 20
# Two losses at the same weights and inputs that differ by more are random.
LARGEST_REPEAT_ERROR = 1e-5

Arrays = dict[str, np.ndarray]
# What each router of a model chose, as `routing=` takes it.
RoutingIndices = list[np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class TrainingRuns:
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
    ours: "FlaxTrainer",
    *,
    dtype: DType,
    steps: int,
    weights_after: int,
    training: Training,
    before_step: Callable[[int, Inputs, nnx.Module, Models], None] = lambda *_: None,
) -> TrainingRuns:
    """Trains JAX and three PyTorch models side by side: one in each type, and one with other threads.

    All routers, where there are any, choose at each step what those of the compared PyTorch model choose: left
    to themselves, runs drift apart for good at the first toss-up that they decide differently.

    Args:
      pair: the Flax model, the batches and the losses.
      models: the PyTorch model in both types.
      ours: started with the same weights.
      dtype: in which of them JAX is compared with it.
      steps: number of batches, at least 1.
      weights_after: the step, counted from 1, whose weights are kept.
      training: the optimiser.
      before_step: called with the number of each step, its inputs, the Flax model with the weights of the
        moment, and PyTorch with these same weights.

    Raises:
      ValueError: a batch that differs from `pair.inputs` in names or shapes, or a loss that is no scalar.
    """
    sides = _AllSides(pair, models, ours, dtype, training)
    tensors: dict[str, Any] = {}
    for step in range(steps):
        batch = cast(_batch(pair, step), dtype)
        require_finite_inputs(batch, "inputs" if pair.batches is None else f"batches({step})")
        sides.step(step, batch, before_step)
        if step == 0:
            tensors["gradients"] = ours.gradients()
            tensors["their_gradients"] = {kind: trainer.gradients() for kind, trainer in sides.theirs.items()}
        if step + 1 == weights_after:
            tensors["weights"] = ours.weights()
            tensors["their_weights"] = {kind: trainer.weights() for kind, trainer in sides.theirs.items()}
    return TrainingRuns(losses=sides.losses(), **tensors)


class _AllSides:
    """The four runs, and PyTorch at the weights that JAX has reached."""

    def __init__(
        self, pair: Pair, models: Models, ours: "FlaxTrainer", dtype: DType, training: Training
    ) -> None:
        self.pair, self.dtype, self.ours = pair, dtype, ours
        threads = torch.get_num_threads()
        self.threads = threads, 1 if threads > 1 else 2
        in_float64 = (
            dtype == "float32"
        )  # for float64 the float32 run shows the noise of the optimiser as well
        self.theirs = {
            kind: TorchTrainer(pair, model, training, threads, in_float64=in_float64)
            for kind, model in models.items()
        }
        self.other_threads = TorchTrainer(
            pair, models[dtype], training, self.threads[1], in_float64=in_float64
        )
        self.at_jax_weights = {kind: copy.deepcopy(model) for kind, model in models.items()}
        self.losses_at_jax_weights: dict[DType, list[float]] = {kind: [] for kind in models}

    def step(
        self, step: int, inputs: Inputs, before_step: Callable[[int, Inputs, nnx.Module, Models], None]
    ) -> None:
        weights = self.ours.weights()
        for model in self.at_jax_weights.values():
            _set_weights(model, weights)
        before_step(step, inputs, self.ours.model, self.at_jax_weights)
        indices = _routing_indices(self.pair, self.theirs[self.dtype].model, inputs)
        for kind, model in self.at_jax_weights.items():
            statistics = statistics_of(model)
            with torch.no_grad():
                loss = torch_loss(self.pair, model, cast(inputs, kind), indices).item()
            restore_statistics(model, statistics)
            self.losses_at_jax_weights[kind].append(loss)
        for kind, trainer in self.theirs.items():
            trainer.step(cast(inputs, kind), indices)
        self.other_threads.step(inputs, indices)
        self.ours.step(inputs, indices)

    def losses(self) -> Losses:
        return Losses(
            jax=self.ours.losses,
            pytorch=self.theirs[self.dtype].losses,
            pytorch_other_threads=self.other_threads.losses,
            pytorch_float32=self.theirs["float32"].losses,
            pytorch_float64=self.theirs["float64"].losses,
            jax_weights_float32=self.losses_at_jax_weights["float32"],
            jax_weights_float64=self.losses_at_jax_weights["float64"],
            threads=self.threads,
        )


class TorchTrainer:
    """A copy of a PyTorch model under an optimiser, and the losses so far.

    Args:
      pair, model: what is trained; `pair` has the loss.
      training: the optimiser.
      threads: how many compute it.
      in_float64: whether the optimiser computes in float64 rather than in the type of the model.
    """

    def __init__(
        self, pair: Pair, model: torch.nn.Module, training: Training, threads: int, *, in_float64: bool
    ) -> None:
        self.pair, self.threads = pair, threads
        self.model = copy.deepcopy(model)
        self.losses: list[float] = []
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        masters = {
            name: p.detach().to(torch.float64 if in_float64 else p.dtype).clone()
            for name, p in self.parameters.items()
        }
        self.optimizer = TorchOptimizer(training, masters)

    def step(self, inputs: Inputs, indices: RoutingIndices | None) -> None:
        self.model.zero_grad(set_to_none=True)
        statistics = statistics_of(self.model)
        with _threads(self.threads), torch.enable_grad():
            loss = torch_loss(self.pair, self.model, inputs, indices)
            if loss.requires_grad:  # otherwise no parameter takes part
                loss.backward()
        restore_statistics(self.model, statistics)
        # One that takes no part has no gradient here, and a zero one in JAX.
        self.optimizer.step(
            {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self.parameters.items()}
        )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.optimizer.masters[name])
        self.losses.append(loss.item())

    def gradients(self) -> Arrays:
        """Those of the last step, under every name that a parameter has."""
        return {
            name: to_numpy(torch.zeros_like(p) if p.grad is None else p.grad)
            for name, p in named_parameters(self.model)
        }

    def weights(self) -> Arrays:
        return {name: to_numpy(parameter) for name, parameter in named_parameters(self.model)}


def learned_names(pair: Pair) -> dict[str, str]:
    """The paths of the Flax model's variables that are parameters in PyTorch, and their names there."""
    learned = {name for name, _ in named_parameters(pair.theirs)}
    return {e.ours: e.theirs for e in parameters_of(pair.table) if e.theirs in learned}


def split_learned(pair: Pair) -> tuple[Any, nnx.State, nnx.State]:
    """The Flax model as its structure, the variables that PyTorch learns, and all others."""
    paths = learned_names(pair)
    graphdef, params, rest = nnx.split(pair.ours, lambda path, _: ".".join(map(str, path)) in paths, ...)
    return graphdef, params, rest


class FlaxTrainer:
    """The parameters of a Flax model under an optimiser, and the losses so far; the model itself keeps its own.

    What learns are the variables that are parameters in PyTorch, of whatever type Flax has them.
    """

    def __init__(self, pair: Pair, training: Training, *, keep_gradients: bool = False) -> None:
        self.pair, self.training, self.keep_gradients = pair, training, keep_gradients
        names_of = learned_names(pair)
        graphdef, params, rest = split_learned(pair)

        # A copy, so that a call may change what is no parameter, such as the statistics of a BatchNorm.
        def merge(params: nnx.State) -> nnx.Module:
            return nnx.merge(graphdef, params, rest, copy=True)

        optimizer = optax_optimizer(training, decay_mask(training, names_of))
        names: list[str] = []  # of the inputs: JAX sorts the keys of a dict

        @jax.jit
        def differentiate(params, values, options):
            inputs = dict(zip(names, values, strict=True))
            return jax.value_and_grad(lambda params: _jax_loss(pair, merge(params), inputs, options))(params)

        @jax.jit
        def update(masters, gradients, moments):
            updates, moments = optimizer.update(gradients, moments, masters)
            return optax.apply_updates(masters, updates), moments

        self.names, self.differentiate, self.update = names, differentiate, update
        self.optimizer, self.names_of = optimizer, names_of
        self.merge = merge
        self.begin(params)

    def begin(self, params: nnx.State) -> None:
        """Starts a run at these parameters."""
        self.params = params
        self.losses: list[float] = []
        self.last_gradients = params
        self.first_params, self.all_gradients = params, list[nnx.State]()
        with jax.enable_x64(True):
            self.masters = _as_float64(params)
            if self.training.same_in_optax:
                self.moments = self.optimizer.init(self.masters)
                self.shared = None
            else:
                self.shared = TorchOptimizer(self.training, self._tensors(self.masters))

    def _tensors(self, params: nnx.State) -> dict[str, torch.Tensor]:
        """What learns as tensors, by PyTorch's names and in its layout."""
        arrays = export(self.merge(params), self.pair.table)
        return {name: torch.from_numpy(arrays[name]) for name in dict.fromkeys(self.names_of.values())}

    def begin_at(self, arrays: Arrays) -> None:
        """Starts a run at the weights of a PyTorch state_dict."""
        self.begin(self._fitted(self.params, arrays))

    def _fitted(self, params: nnx.State, arrays: Arrays) -> nnx.State:
        """The same variables with the values of a PyTorch state_dict."""
        model = self.merge(params)
        for path, value in fit(model, self.pair.table, arrays).items():
            variable_at(model, path).set_value(jnp.asarray(value))
        flat = dict(nnx.to_flat_state(nnx.state(model)))
        return nnx.from_flat_state([(path, flat[path]) for path, _ in nnx.to_flat_state(params)])

    def step(self, inputs: Inputs, indices: RoutingIndices | None) -> None:
        options = {}
        if indices is not None:
            options["routing"] = [None if one is None else jnp.asarray(one) for one in indices]
        arrays = as_jax_arrays(self.pair, inputs)
        self.names[:] = arrays
        with failures_explained(
            "the loss in JAX", "loss_ours gets the model and the inputs and returns a scalar"
        ):
            loss, self.last_gradients = self.differentiate(self.params, list(arrays.values()), options)
        if self.keep_gradients and len(self.all_gradients) < OPTIMIZER_BATCHES:
            self.all_gradients.append(self.last_gradients)
        with jax.enable_x64(True):
            gradients = _as_float64(self.last_gradients)
            if self.shared is None:
                self.masters, self.moments = self.update(self.masters, gradients, self.moments)
            else:
                self.shared.step(self._tensors(gradients))
                self.masters = self._fitted(self.masters, self._updated(self.shared))
            # In NumPy: outside of jit, JAX would compile a program for every shape.
            self.params = jax.tree.map(
                lambda x, master: jax.device_put(np.asarray(master).astype(x.dtype)),
                self.params,
                self.masters,
            )
        self.losses.append(float(loss))

    def _updated(self, optimizer: TorchOptimizer) -> Arrays:
        """The state_dict of the weights after an update by PyTorch's optimiser."""
        arrays = export(self.merge(self.masters), self.pair.table)
        arrays |= {name: to_numpy(master) for name, master in optimizer.masters.items()}
        tied = {entry.theirs: arrays[entry.to] for entry in self.pair.table if isinstance(entry, Tied)}
        return arrays | tied

    def compare_optimizers(self) -> OptimizerComparison:
        """optax's optimiser against PyTorch's on the gradients of this run."""

        def exported(params: nnx.State) -> Arrays:
            arrays = export(self.merge(params), self.pair.table)
            return {name: arrays[name] for name in dict.fromkeys(self.names_of.values())}

        return compare_optimizers(
            self.training, self.first_params, self.all_gradients, ours=self.optimizer, export=exported
        )

    @property
    def model(self) -> nnx.Module:
        """A model with the weights of the moment."""
        return self.merge(self.params)

    def gradients(self) -> Arrays:
        """Those of the last step."""
        return export(self.merge(self.last_gradients), self.pair.table)

    def weights(self) -> Arrays:
        return export(self.model, self.pair.table)


def refuse_random_loss(pair: Pair, model: torch.nn.Module, inputs: Inputs) -> None:
    """Computes PyTorch's loss twice.

    Raises:
      PairError: the two differ.
    """
    indices = _routing_indices(pair, model, inputs)
    statistics = statistics_of(model)
    with torch.no_grad():
        first, second = (torch_loss(pair, model, inputs, indices).item() for _ in range(2))
    restore_statistics(model, statistics)
    if abs(first - second) > LARGEST_REPEAT_ERROR * abs(first):
        raise PairError(
            f"loss_theirs returns {first:.6g} and then {second:.6g} for the same weights and inputs: it is random, "
            "such as by functional dropout without training=; switch it off before comparing"
        )


def torch_routing(indices: RoutingIndices) -> list[torch.Tensor | None]:
    """Routers' choices as PyTorch takes them."""
    return [None if one is None else torch.from_numpy(one) for one in indices]


def _as_float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x).astype(np.float64)), tree)


def named_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters under all of their names; tied ones have several."""
    return list(model.named_parameters(remove_duplicate=False))


def _batch(pair: Pair, step: int) -> Inputs:
    if pair.batches is None:
        return pair.inputs
    with failures_explained(f"batches({step})", "it gets the number of a step and returns arrays by name"):
        batch = dict(pair.batches(step))
    shapes, expected = ({key: np.shape(x) for key, x in part.items()} for part in (batch, pair.inputs))
    if shapes != expected:
        raise ValueError(
            f"batches({step}) must have the names and shapes of inputs, which are {expected}; got {shapes}"
        )
    return batch


def _routing_indices(pair: Pair, model: torch.nn.Module, inputs: Inputs) -> RoutingIndices | None:
    """What the routers of the PyTorch model choose, where it has any."""
    if pair.routing_ours is None or pair.routing_theirs is None:
        return None
    with torch.no_grad():
        routed = pair.routing_theirs(model, as_tensors(inputs))
    return [None if router.indices is None else to_numpy(router.indices) for router in routed]


def _set_weights(model: torch.nn.Module, weights: Arrays) -> None:
    with torch.no_grad():
        for name, parameter in named_parameters(model):
            if name in weights:  # a table need not cover what takes no part
                parameter.copy_(torch.from_numpy(weights[name]))


def torch_loss(
    pair: Pair, model: torch.nn.Module, inputs: Inputs, indices: RoutingIndices | None
) -> torch.Tensor:
    begin_run(model)
    options = {} if indices is None else {"routing": torch_routing(indices)}
    with failures_explained(
        "the loss in PyTorch", "loss_theirs gets the model and the inputs, and returns a scalar"
    ):
        if pair.loss_theirs is not None:
            loss = pair.loss_theirs(model, as_tensors(inputs), **options)
        else:
            loss = mean_square(pair.call_theirs(model, as_tensors(inputs), **options))
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise PairError(f"loss_theirs must return a scalar tensor; got {got}: take a mean or a sum")
    return loss.reshape(())


def _jax_loss(
    pair: Pair, model: nnx.Module, inputs: Mapping[str, jax.Array], options: Mapping[str, Any]
) -> jax.Array:
    if pair.loss_ours is not None:
        loss = pair.loss_ours(model, inputs, **options)
    else:
        loss = mean_square(pair.call_ours(model, inputs, **options))
    if jnp.size(loss) != 1:
        raise PairError(f"loss_ours must return a scalar; got {jnp.shape(loss)}: take a mean or a sum")
    return jnp.reshape(loss, ())


@contextmanager
def _threads(count: int) -> Generator[None]:
    """PyTorch computes with `count` threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
