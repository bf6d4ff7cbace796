"""Why do two training runs part? One ingredient at a time is taken from the other run.

The models are not an ingredient: `compare` shows first that they are equal. Both set-ups then train PyTorch's.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from jaxmodels.compare.calls import failures_explained
from jaxmodels.compare.noise import DType
from jaxmodels.compare.outputs import mean_square
from jaxmodels.compare.pair import Inputs, Pair
from jaxmodels.compare.preparation import as_tensors, cast
from jaxmodels.compare.torch_mode import without_dropout
from jaxmodels.compare.torch_optimizers import TorchOptimizer
from jaxmodels.compare.training import Training
from jaxmodels.convert.torch_io import to_numpy


# An ingredient that explains less than this alone is not named as the reason.
LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One way to train the model of a pair.

    Attributes:
      weights: PyTorch's state_dict, from which the run starts; by default that of the pair.
      batches: the inputs of each step, counted from 0; by default those of the pair.
      training: the optimiser and the moving average.
      dtype: of weights and inputs; the optimiser computes in it too.
      dropout: the seed of PyTorch's masks; None switches dropout off.
    """

    weights: Mapping[str, Any] | None = None
    batches: Callable[[int], Inputs] | None = None
    training: Training = field(default_factory=Training)
    dtype: DType = "float32"
    dropout: int | None = None


@dataclass(frozen=True)
class Share:
    """What one ingredient explains.

    Attributes:
      ingredient: its name.
      weights: the share of the distance between the final weights that is gone once this ingredient is taken
        from the second run. 1 is all of it; below 0 the runs end further apart.
      loss: the same of the difference between the final losses; NaN where they are equal.
    """

    ingredient: str
    weights: float
    loss: float


@dataclass(frozen=True)
class RunDifference:
    """How far two runs end from each other, and why.

    Attributes:
      weights: the distance between the final weights, as a share of the second run's.
      losses: of the final weights on the pair's inputs, in evaluation mode and float64.
      shares: of every ingredient that differs, the largest share of the weights' distance first.
    """

    weights: float
    losses: tuple[float, float]
    shares: list[Share]

    @property
    def reason(self) -> str:
        """One sentence."""
        if not self.shares or not self.weights:
            return "the two runs do not part"
        first = self.shares[0]
        if first.weights < LEAST_SHARE:
            return (
                f"no ingredient explains the difference alone; the most is {first.weights:.0%} by the "
                f"{first.ingredient}"
            )
        return (
            f"the {first.ingredient} explains {first.weights:.0%} of the distance between the final weights"
        )


def explain_runs(pair: Pair, first: Setup, second: Setup, *, steps: int) -> RunDifference:
    """Trains both set-ups, and the first again with each ingredient of the second.

    Args:
      pair: its PyTorch model, its loss and its inputs; `pair.theirs` stays as it is.
      first, second: the two set-ups.
      steps: batches of each run, at least 1.

    Raises:
      ValueError: a wrong number of steps.
      PairError: the model or the loss fails.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer ≥ 1; got steps={steps!r}")
    ingredients = [_ingredients(pair, setup) for setup in (first, second)]
    differing = [
        name for name in ingredients[0] if not _same(*(ingredient[name] for ingredient in ingredients))
    ]
    start, goal = (_run(pair, ingredient, steps) for ingredient in ingredients)
    distance, gap = _distance(start[0], goal[0]), abs(start[1] - goal[1])
    shares = []
    for name in differing if distance else ():
        weights, loss = _run(pair, ingredients[0] | {name: ingredients[1][name]}, steps)
        of_loss = 1 - abs(loss - goal[1]) / gap if gap else float("nan")
        shares.append(Share(name, 1 - _distance(weights, goal[0]) / distance, of_loss))
    shares.sort(key=lambda share: share.weights, reverse=True)
    return RunDifference(distance, (start[1], goal[1]), shares)


def _ingredients(pair: Pair, setup: Setup) -> dict[str, Any]:
    weights = pair.theirs.state_dict() if setup.weights is None else setup.weights
    training = setup.training
    return {
        "initialisation": {name: _as_array(value) for name, value in weights.items()},
        "batch order": setup.batches or pair.batches,
        "optimiser": replace(training, ema_decay=None),
        "moving average": training.ema_decay,
        "precision": setup.dtype,
        "dropout": setup.dropout,
    }


def _as_array(value: Any) -> np.ndarray:
    return to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    return a is b or a == b


def _run(pair: Pair, ingredients: Mapping[str, Any], steps: int) -> tuple[dict[str, np.ndarray], float]:
    """The final weights, or their moving average, and the loss that these have on the pair's inputs."""
    dtype, batches = ingredients["precision"], ingredients["batch order"]
    model = copy.deepcopy(pair.theirs)
    way_out = "weights is a state_dict of the pair's PyTorch model"
    with failures_explained("loading the weights of a set-up", way_out):
        model.load_state_dict({name: torch.tensor(x) for name, x in ingredients["initialisation"].items()})
    model = model.to(getattr(torch, dtype)).train()
    if ingredients["dropout"] is None:
        for module in model.modules():
            without_dropout(module)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    training = replace(ingredients["optimiser"], ema_decay=ingredients["moving average"])
    optimizer = TorchOptimizer(training, {name: p.data for name, p in parameters.items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ingredients["dropout"] or 0)
        for step in range(steps):
            model.zero_grad()
            with torch.enable_grad():
                batch = pair.inputs if batches is None else batches(step)
                _loss(pair, model, cast(batch, dtype)).backward()
            optimizer.step(
                {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
            )
    if training.ema_decay is not None:
        for name, parameter in parameters.items():
            parameter.data.copy_(optimizer.average[name])
    final = {name: to_numpy(parameter.detach().double()) for name, parameter in parameters.items()}
    with torch.no_grad():
        loss = _loss(pair, model.double().eval(), cast(pair.inputs, "float64")).item()
    return final, loss


def _loss(pair: Pair, model: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    with failures_explained("the loss in PyTorch", "loss_theirs gets the model and the inputs"):
        if pair.loss_theirs is not None:
            return pair.loss_theirs(model, as_tensors(inputs))
        return mean_square(pair.call_theirs(model, as_tensors(inputs)))


def _distance(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """The norm of the difference of all weights, as a share of the norm of `b`."""
    difference = sum(float(np.sum((a[name] - b[name]) ** 2)) for name in b)
    size = sum(float(np.sum(b[name] ** 2)) for name in b)
    return float(np.sqrt(difference / size)) if size else float(np.sqrt(difference))
