"""The comparison itself: outputs, every layer, every gradient, and the weights after optimiser steps.

Nothing is judged by a tolerance that somebody chose. PyTorch runs in float32 and in float64 on the same
weights and inputs: how far it is from itself is the noise of float32 arithmetic for this model, and JAX may
be `FACTOR` times as far from PyTorch. For float64 the same noise is scaled by the ratio of the two machine
epsilons.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from einops import rearrange
from flax import nnx

from jaxmodels.compare.layers import (
    Difference,
    Event,
    differences,
    distance,
    flax_events,
    parent_of,
    relative_error,
    torch_events,
)
from jaxmodels.compare.pair import Pair, parameters_of
from jaxmodels.compare.precision import Evidence, full_precision
from jaxmodels.compare.routing import Routing, agreement, choices, identical
from jaxmodels.convert.core import export, fit, variable_at
from jaxmodels.convert.torch_io import to_numpy


# Two float32 computations differ from a third by amounts of the same order, not by the same amount.
FACTOR = 8
# Rounding of a single operation, in units of the machine epsilon: a noise of zero is luck.
LEAST_NOISE = 2
# A gradient below this share of the model's largest is measured against the latter.
SMALL_GRADIENT = 1e-6
ADAMW: dict[str, Any] = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}

DType = Literal["float32", "float64"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One number against its tolerance; errors are relative to the largest value of the tensor."""

    name: str
    error: float
    noise: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class LayerCheck(Check):
    """A layer's call; `kind` says whether its inputs or its outputs were compared."""

    call: int
    kind: Literal["input", "output"]


@dataclass(frozen=True)
class Divergence:
    """Where the two sides first part.

    Attributes:
      layer: the PyTorch path of the module at fault ("(model)" for the model's own code).
      detail: one sentence: between which layers.
      error: how far apart they are there.
    """

    layer: str
    detail: str
    error: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """Everything that was measured of one pair."""

    model: str
    dtype: DType
    parameters: int
    outputs: list[Check]
    layers: list[LayerCheck]
    gradients: list[Check]
    weights: list[Check]
    losses: list[tuple[float, float]]  # (JAX, PyTorch) before each step
    divergence: Divergence | None
    precision: Evidence
    routing: Routing | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.divergence is None and all(check.ok for check in self.checks)

    @property
    def checks(self) -> list[Check]:
        return [*self.outputs, *self.layers, *self.gradients, *self.weights]


def compare(
    pair: Pair,
    *,
    dtype: DType = "float32",
    steps: int = 3,
    learning_rate: float = 1e-3,
    gradients: bool = True,
    progress: Progress = lambda stage: None,
) -> Result:
    """Runs both models of `pair` on shared weights and inputs.

    Args:
      pair: the two models. Neither's parameters are changed, except that `pair.ours` receives PyTorch's.
      dtype: floating-point type of weights and inputs. float64 needs `jax_enable_x64`.
      steps: optimiser steps (AdamW) after which the weights are compared; 0 leaves them out.
      learning_rate: of those steps.
      gradients: False compares the forward pass alone.
      progress: called with the name of each stage.

    Raises:
      ValueError: a wrong argument, or weights that do not fit the table.
      RuntimeError: float32 products are computed with fewer digits.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64'; got dtype={dtype!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be an integer ≥ 0; got steps={steps!r}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "dtype='float64' needs jax.config.update('jax_enable_x64', True) before the first array is made"
        )
    with full_precision() as evidence:
        return _Comparison(pair, dtype, progress).run(steps, learning_rate, gradients, evidence)


class _Comparison:
    """One comparison. PyTorch's sides are float32 (`narrow`) and float64 (`wide`); `theirs` is the compared one."""

    def __init__(self, pair: Pair, dtype: DType, progress: Progress) -> None:
        progress("weights")
        self.pair, self.dtype, self.progress = pair, dtype, progress
        source = copy.deepcopy(pair.theirs).eval()
        theirs = source.to(getattr(torch, dtype))
        inputs = _cast(pair.inputs, dtype)
        self.narrow = _Side(copy.deepcopy(theirs).float(), _cast(inputs, "float32"))
        self.wide = _Side(copy.deepcopy(theirs).double(), _cast(inputs, "float64"))
        self.theirs = self.narrow if dtype == "float32" else self.wide
        self.shrink = float(np.finfo(np.dtype(dtype)).eps / np.finfo(np.float32).eps)
        self.least = LEAST_NOISE * float(np.finfo(dtype).eps)
        arrays = {key: to_numpy(tensor) for key, tensor in theirs.state_dict().items()}
        for path, value in fit(pair.ours, pair.table, arrays).items():
            variable_at(pair.ours, path).set_value(jnp.asarray(value))
        self.inputs = self.theirs.inputs
        self.parameters = sum(array.numel() for array in theirs.parameters())
        self.notes: list[str] = []
        self.routing: Routing | None = None
        self.chosen: list[np.ndarray | None] | None = None  # indices that PyTorch's routers chose
        self.repeat_choice = False  # whether all runs are given these
        if pair.routing_ours and pair.routing_theirs:
            self._compare_routing(pair.routing_ours, pair.routing_theirs)

    def run(self, steps: int, learning_rate: float, backward: bool, evidence: Evidence) -> Result:
        self.progress("outputs")
        with torch.no_grad():
            runs = {side: self._torch_run(side) for side in self.sides}
        outputs = self._outputs({side: out for side, (out, _) in runs.items()})
        self.progress("layers")
        layers = self._layers({side: events for side, (_, events) in runs.items()})
        gradients, weights, losses = [], [], []
        if backward:
            self.progress("gradients")
            gradients, weights, losses = self._training(steps, learning_rate)
        return Result(
            model=self.pair.name,
            dtype=self.dtype,
            parameters=self.parameters,
            outputs=outputs,
            layers=layers,
            gradients=gradients,
            weights=weights,
            losses=losses,
            divergence=self._divergence(outputs, layers, gradients, weights),
            precision=evidence,
            routing=self.routing,
            notes=self.notes,
        )

    def _compare_routing(self, routing_ours: Callable, routing_theirs: Callable) -> None:
        """Compares the routers' choices; where any two runs differ, all of them repeat PyTorch's."""
        self.progress("routing")
        pair = self.pair
        ours = choices(pair.routers, jax.jit(routing_ours)(pair.ours, self._our_inputs()))
        with torch.no_grad():
            routed = {
                side: routing_theirs(side.model, _tensors(side.inputs)) for side in (self.narrow, self.wide)
            }
        narrow, wide = (choices(pair.routers, routed[side]) for side in (self.narrow, self.wide))
        theirs = narrow if self.theirs is self.narrow else wide
        self.chosen = [None if r.indices is None else to_numpy(r.indices) for r in routed[self.theirs]]
        self.routing = agreement(
            ours, theirs, narrow=narrow, wide=wide, least=self.least, factor=FACTOR, shrink=self.shrink
        )
        # Also where only the order differs: what comes behind keeps it.
        self.repeat_choice = not (identical(ours, theirs) and identical(narrow, wide))
        if self.routing.differing:
            self.notes.append(
                f"routing: {self.routing.differing} sets differ between JAX and PyTorch; "
                "layers and gradients are compared with PyTorch's choice on both sides"
            )

    def _theirs(self, function: Callable) -> Callable:
        """`function` with the choice to repeat, as tensors."""
        if self.chosen is None or not self.repeat_choice:
            return function
        return partial(function, routing=[None if i is None else torch.from_numpy(i) for i in self.chosen])

    def _mine(self, function: Callable) -> Callable:
        """`function` with the choice to repeat, as JAX arrays."""
        if self.chosen is None or not self.repeat_choice:
            return function
        return partial(function, routing=[None if i is None else jnp.asarray(i) for i in self.chosen])

    def _torch_run(self, side: "_Side") -> tuple[list[np.ndarray], list[Event]]:
        call, inputs = self._theirs(self.pair.call_theirs), _tensors(side.inputs)
        out, events = torch_events(side.model, lambda: call(side.model, inputs))
        return [to_numpy(o) for o in _as_tuple(out)], events

    def _noise(self, of: Mapping["_Side", Any], error: Callable[[Any, Any], float]) -> float:
        """PyTorch's distance from itself, for the compared type."""
        noise = error(of[self.narrow], of[self.wide]) * self.shrink
        return noise if np.isfinite(noise) else 0.0

    def _our_inputs(self) -> dict[str, jax.Array]:
        return {k: jnp.asarray(v) for k, v in self.pair.to_ours(self.inputs).items()}

    def _outputs(self, runs: Mapping["_Side", list[np.ndarray]]) -> list[Check]:
        theirs = runs[self.theirs]
        ours = jax.jit(self._mine(self.pair.call_ours))(self.pair.ours, self._our_inputs())
        ours = [np.asarray(o) for o in _as_tuple(ours)]
        if len(ours) != len(theirs):
            raise ValueError(
                f"the models return {len(ours)} and {len(theirs)} outputs; they must return as many"
            )
        checks = []
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            other = rearrange(other, self.pair.output_axes)
            noise = self._noise({side: out[i] for side, out in runs.items()}, relative_error)
            checks.append(self._check(f"output {i}", relative_error(mine, other), noise))
        return checks

    def _layers(self, runs: Mapping["_Side", list[Event]]) -> list[LayerCheck]:
        call, inputs = self._mine(self.pair.call_ours), self._our_inputs()
        ours = flax_events(self.pair.ours, lambda model: call(model, inputs))
        by_key = {side: {event.key: event for event in events} for side, events in runs.items()}
        checks: list[LayerCheck] = []
        seen: list[float] = []
        for found in differences(runs[self.theirs], ours, self.pair.twins):
            events = {side: known.get((found.path, found.call, found.kind)) for side, known in by_key.items()}
            seen.append(self._noise(events, distance) if all(events.values()) else 0.0)
            # A single layer may be lucky: none is held to less than half of what came before shows.
            check = self._check(found.path, found.error, max(seen[-1], median(seen)))
            checks.append(LayerCheck(**vars(check), call=found.call, kind=found.kind))
        return checks

    def _training(self, steps: int, learning_rate: float):
        """(gradient checks, weight checks, losses): the first step's gradient is the one that is compared."""
        ours = self._train_ours(steps, learning_rate)
        runs = {side: self._train_torch(side, steps, learning_rate) for side in self.sides}
        gradients = self._tensor_checks(ours.gradients, {side: run.gradients for side, run in runs.items()})
        weights = []
        if steps:
            weights = self._tensor_checks(ours.weights, {side: run.weights for side, run in runs.items()})
            # AdamW divides by the gradient's size: elements that are only noise move by a whole step.
            # How many there are is luck, so the weights share the model's largest noise.
            noise = max(check.noise for check in weights)
            weights = [self._check(check.name, check.error, noise) for check in weights]
        return gradients, weights, list(zip(ours.losses, runs[self.theirs].losses, strict=True))

    @property
    def sides(self) -> tuple["_Side", ...]:
        return self.narrow, self.wide

    def _train_torch(self, side: "_Side", steps: int, learning_rate: float) -> "_Run":
        model, inputs = copy.deepcopy(side.model), _tensors(side.inputs)
        call = self._theirs(self.pair.call_theirs)
        loss_of = (
            self._theirs(self.pair.loss_theirs)
            if self.pair.loss_theirs
            else lambda model, x: _mean_square(_as_tuple(call(model, x)))
        )
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=learning_rate,
            betas=(ADAMW["b1"], ADAMW["b2"]),
            eps=ADAMW["eps"],
            weight_decay=ADAMW["weight_decay"],
        )
        run = _Run()
        for step in range(max(steps, 1)):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model, inputs)
            loss.backward()
            gradients = {}
            for key, parameter in model.named_parameters():
                if parameter.grad is None:  # takes no part: a zero gradient, as in JAX
                    parameter.grad = torch.zeros_like(parameter)
                gradients[key] = to_numpy(parameter.grad)
            run.losses.append(loss.item())
            if step == 0:
                run.gradients = gradients
            if steps:
                optimizer.step()
        run.weights = {k: to_numpy(p) for k, p in model.named_parameters()}
        return run

    def _train_ours(self, steps: int, learning_rate: float) -> "_Run":
        inputs = self._our_inputs()
        call = self._mine(self.pair.call_ours)
        loss_of = (
            self._mine(self.pair.loss_ours)
            if self.pair.loss_ours
            else lambda model, x: _mean_square(_as_tuple(call(model, x)))
        )
        graphdef, params, rest = nnx.split(self.pair.ours, nnx.Param, ...)
        optimizer = optax.adamw(learning_rate, **ADAMW)

        @jax.jit
        def step(params, moments):
            loss, gradients = jax.value_and_grad(
                lambda params: loss_of(nnx.merge(graphdef, params, rest), inputs)
            )(params)
            updates, moments = optimizer.update(gradients, moments, params)
            return optax.apply_updates(params, updates), moments, loss, gradients

        run = _Run()
        moments = optimizer.init(params)
        for index in range(max(steps, 1)):
            new_params, moments, loss, gradients = step(params, moments)
            run.losses.append(float(loss))
            if index == 0:
                run.gradients = export(nnx.merge(graphdef, gradients, rest), self.pair.table)
                self.progress("steps")
            if steps:
                params = new_params
        run.weights = export(nnx.merge(graphdef, params, rest), self.pair.table)
        return run

    def _tensor_checks(
        self, ours: Mapping[str, np.ndarray], runs: Mapping["_Side", Mapping[str, np.ndarray]]
    ) -> list[Check]:
        """One check per PyTorch parameter, worst first."""
        theirs, wide = runs[self.theirs], runs[self.wide]
        names = [entry.theirs for entry in parameters_of(self.pair.table) if entry.theirs in theirs]
        largest = max((float(np.abs(wide[k]).max()) for k in names if wide[k].size), default=0.0)

        def error(a: np.ndarray, b: np.ndarray) -> float:
            if a.shape != b.shape or np.isfinite(a).all() != np.isfinite(b).all():
                return float("inf")
            if a.size == 0 or not np.isfinite(b).all():
                return relative_error(a, b)
            difference = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
            scale = max(float(np.abs(b).max()), SMALL_GRADIENT * largest)
            return difference / scale if difference else 0.0

        noises = {k: self._noise({side: run[k] for side, run in runs.items()}, error) for k in names}
        typical = median(noises.values()) if noises else 0.0
        checks = [self._check(k, error(ours[k], theirs[k]), max(noises[k], typical)) for k in names]
        return sorted(checks, key=lambda check: check.error / check.tolerance, reverse=True)

    def _check(self, name: str, error: float, noise: float) -> Check:
        noise = max(noise, self.least) if np.isfinite(noise) else self.least
        return Check(name, error, noise, FACTOR * noise)

    def _divergence(
        self, outputs: list[Check], layers: list[LayerCheck], gradients: list[Check], weights: list[Check]
    ) -> Divergence | None:
        first = next((i for i, check in enumerate(layers) if not check.ok), len(layers))
        fault = self.routing.first_fault if self.routing else None
        if fault:  # an earlier layer that differs explains a later choice that does
            places = [i for i, c in enumerate(layers) if c.name == fault.name and c.kind == "output"]
            if not places or places[0] <= first:
                margin = f"{fault.lost_margin:.1e}"
                detail = f"{fault.differing} of {fault.choices} choices differ, by margins up to {margin}"
                return Divergence(fault.name, detail, fault.lost_margin)
        if first < len(layers):
            return self._first_layer(layers[:first], layers[first])
        for check in outputs:
            if not check.ok:
                return Divergence("(model)", f"{check.name} differs although every layer agrees", check.error)
        order = {entry.theirs: i for i, entry in enumerate(parameters_of(self.pair.table))}
        wrong = [check for check in gradients if not check.ok]
        if wrong:  # the gradient flows backwards: the last parameter is the first that it reaches
            last = max(wrong, key=lambda check: order[check.name])
            detail = f"the forward pass agrees, the gradient of {last.name} does not"
            return Divergence(last.name.rpartition(".")[0] or last.name, detail, last.error)
        wrong = [check for check in weights if not check.ok]
        if wrong:
            detail = f"gradients agree, {wrong[0].name} does not after the optimiser steps"
            return Divergence(wrong[0].name.rpartition(".")[0] or wrong[0].name, detail, wrong[0].error)
        return None

    def _first_layer(self, before: list[LayerCheck], check: LayerCheck) -> Divergence:
        difference = Difference(check.name, check.call, check.kind, check.error)
        again = f" (call {check.call + 1})" if check.call else ""
        name = check.name or "(model)"
        if check.kind == "output":
            return Divergence(
                name, f"{name}{again} gets the same input and returns another output", check.error
            )
        parent = parent_of(difference, self.pair.twins) or "(model)"
        last = next((c.name for c in reversed(before) if c.kind == "output"), None)
        since = f" after {last}" if last else ""
        return Divergence(parent, f"in the code of {parent}{since}, before {name}{again}", check.error)


@dataclass(frozen=True, eq=False)
class _Side:
    """A PyTorch model in one precision, and the inputs in the same."""

    model: torch.nn.Module
    inputs: dict[str, np.ndarray]


@dataclass
class _Run:
    """What a training run leaves behind."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def _cast(inputs: Mapping[str, Any], dtype: str) -> dict[str, np.ndarray]:
    arrays = {key: np.asarray(value) for key, value in inputs.items()}
    return {k: v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v for k, v in arrays.items()}


def _tensors(inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value.copy()) for key, value in inputs.items()}


def _as_tuple(outputs: Any) -> tuple:
    return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


def _mean_square(outputs: tuple) -> Any:
    return sum((output * output).mean() for output in outputs)
