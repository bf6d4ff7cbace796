"""The comparison itself: outputs, every layer, every gradient, and a training run with its losses and weights.

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
from jaxmodels.compare.pair import Inputs, Pair, parameters_of
from jaxmodels.compare.precision import Evidence, full_precision
from jaxmodels.compare.routing import RouterAgreement, Routing, agreement, choices, identical
from jaxmodels.compare.steps import Chosen, DType, Losses, Models, arrays, as_tuple, cast, tensors, train
from jaxmodels.convert.core import fit, variable_at
from jaxmodels.convert.torch_io import to_numpy


# Two float32 computations differ from a third by amounts of the same order, not by the same amount.
FACTOR = 8
# Rounding of a single operation, in units of the machine epsilon: a noise of zero is luck.
LEAST_NOISE = 2
# A gradient below this share of the model's largest is measured against the latter.
SMALL_GRADIENT = 1e-6
STAGES = ("weights", "routing", "outputs", "layers", "gradients")
# In float32 a run that decides otherwise at a kink (a ReLU near zero, a router's toss-up) parts from its like by
# more than rounding, and sooner or later one does. Its weights are compared before that, its losses at equal weights.
FLOAT32_STEPS = 3
EQUAL_WEIGHTS = " at equal weights"
STEP_COST = 0.05  # of a training step on all sides, in stages

Progress = Callable[[str, float], None]


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
    weight_steps: int  # after how many steps they were compared
    losses: Losses
    loss_checks: list[Check]
    divergence: Divergence | None
    precision: Evidence
    routing: Routing | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.divergence is None and all(check.ok for check in self.checks)

    @property
    def checks(self) -> list[Check]:
        return [*self.outputs, *self.layers, *self.gradients, *self.weights, *self.loss_checks]


def compare(
    pair: Pair,
    *,
    dtype: DType = "float32",
    steps: int = 3,
    learning_rate: float = 1e-3,
    gradients: bool = True,
    progress: Progress = lambda stage, share: None,
) -> Result:
    """Runs both models of `pair` on shared weights and inputs.

    Args:
      pair: the two models. Neither's parameters are changed, except that `pair.ours` receives PyTorch's.
      dtype: floating-point type of weights and inputs. float64 needs `jax_enable_x64`.
      steps: optimiser steps (AdamW) of a training run on each side. Before each, the loss is compared at equal
        weights; in float64 so are the losses of the two runs and the weights after them, in float32 the weights
        after the first three steps. With 0 only the first loss and its gradient are.
      learning_rate: of those steps.
      gradients: False compares the forward pass alone.
      progress: called with the name of each stage and of each step, and the share of the whole that is done.

    Raises:
      ValueError: a wrong argument, weights that do not fit the table, or batches unlike the inputs.
      ReducedPrecisionError: float32 products are computed with fewer digits.
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
        reported = _Reported(progress, steps if gradients else 0)
        return _Comparison(pair, dtype, reported).run(steps, learning_rate, gradients, evidence)


class _Reported:
    """Tells the caller what begins, and how much of the whole is done."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self.progress, self.steps = progress, steps
        self.total = len(STAGES) + STEP_COST * steps

    def stage(self, name: str) -> None:
        self.progress(name, STAGES.index(name) / self.total)

    def step(self, step: int) -> None:
        if step > 0:  # the first is the stage of the gradients
            done = len(STAGES) + STEP_COST * step
            self.progress(f"step {step + 1} of {self.steps}", done / self.total)


class _Comparison:
    """One comparison. PyTorch's sides are float32 (`narrow`) and float64 (`wide`); `theirs` is the compared one."""

    def __init__(self, pair: Pair, dtype: DType, reported: _Reported) -> None:
        reported.stage("weights")
        self.pair, self.dtype, self.reported = pair, dtype, reported
        source = copy.deepcopy(pair.theirs).eval()
        theirs = source.to(getattr(torch, dtype))
        inputs = cast(pair.inputs, dtype)
        self.narrow = _Side(copy.deepcopy(theirs).float(), "float32", cast(inputs, "float32"))
        self.wide = _Side(copy.deepcopy(theirs).double(), "float64", cast(inputs, "float64"))
        self.theirs = self.narrow if dtype == "float32" else self.wide
        self.shrink = float(np.finfo(np.dtype(dtype)).eps / np.finfo(np.float32).eps)
        self.least = LEAST_NOISE * float(np.finfo(dtype).eps)
        weights = {key: to_numpy(tensor) for key, tensor in theirs.state_dict().items()}
        for path, value in fit(pair.ours, pair.table, weights).items():
            variable_at(pair.ours, path).set_value(jnp.asarray(value))
        self.inputs = self.theirs.inputs
        self.parameters = sum(array.numel() for array in theirs.parameters())
        self.notes: list[str] = []
        self.routing: Routing | None = None
        self.later_fault: Divergence | None = None  # the first clear choice overturned in the training run
        self.repeated: Chosen | None = None  # what PyTorch's routers chose, where all runs are given it
        if pair.routing_ours and pair.routing_theirs:
            self.route = jax.jit(pair.routing_ours)
            self._compare_routing()

    def run(self, steps: int, learning_rate: float, backward: bool, evidence: Evidence) -> Result:
        self.reported.stage("outputs")
        with torch.no_grad():
            runs = {side: self._torch_run(side) for side in self.sides}
        outputs = self._outputs({side: out for side, (out, _) in runs.items()})
        self.reported.stage("layers")
        layers = self._layers({side: events for side, (_, events) in runs.items()})
        gradients, weights, losses, loss_checks = [], [], Losses(), []
        if backward:
            self.reported.stage("gradients")
            gradients, weights, losses = self._training(steps, learning_rate)
            loss_checks = self._loss_checks(losses, outputs)
        return Result(
            model=self.pair.name,
            dtype=self.dtype,
            parameters=self.parameters,
            outputs=outputs,
            layers=layers,
            gradients=gradients,
            weights=weights,
            weight_steps=self._weight_steps(steps) if weights else 0,
            losses=losses,
            loss_checks=loss_checks,
            divergence=self._divergence(outputs, layers, gradients, weights, loss_checks),
            precision=evidence,
            routing=self.routing,
            notes=self.notes,
        )

    def _compare_routing(self) -> None:
        """Compares the routers' choices; where any two runs differ, all of them repeat PyTorch's."""
        self.reported.stage("routing")
        models = {side: side.model for side in self.sides}
        self.routing, chosen, identical = self._routed(self.inputs, self.pair.ours, models)
        if not identical:
            self.repeated = chosen
        if self.routing.differing:
            self.notes.append(
                f"routing: {self.routing.differing} sets differ between JAX and PyTorch; "
                "layers and gradients are compared with PyTorch's choice on both sides"
            )

    def _routed(
        self, inputs: Inputs, ours: nnx.Module, models: Mapping["_Side", torch.nn.Module]
    ) -> tuple[Routing, Chosen, bool]:
        """How far the routers agree, what PyTorch's chose, and whether all runs chose the same in the same order."""
        pair = self.pair
        assert pair.routing_theirs is not None
        mine = choices(pair.routers, self.route(ours, arrays(pair, inputs)))
        with torch.no_grad():
            routed = {
                side: pair.routing_theirs(model, tensors(cast(inputs, side.dtype)))
                for side, model in models.items()
            }
        theirs = {side: choices(pair.routers, found) for side, found in routed.items()}
        narrow, wide = theirs[self.narrow], theirs[self.wide]
        routing = agreement(
            mine,
            theirs[self.theirs],
            narrow=narrow,
            wide=wide,
            least=self.least,
            factor=FACTOR,
            shrink=self.shrink,
        )
        chosen = [None if r.indices is None else to_numpy(r.indices) for r in routed[self.theirs]]
        # Also where only the order differs: what comes behind keeps it.
        return routing, chosen, identical(mine, theirs[self.theirs]) and identical(narrow, wide)

    def _theirs(self, function: Callable) -> Callable:
        """`function` with the choice to repeat, as tensors."""
        if self.repeated is None:
            return function
        return partial(function, routing=[None if i is None else torch.from_numpy(i) for i in self.repeated])

    def _mine(self, function: Callable) -> Callable:
        """`function` with the choice to repeat, as JAX arrays."""
        if self.repeated is None:
            return function
        return partial(function, routing=[None if i is None else jnp.asarray(i) for i in self.repeated])

    def _torch_run(self, side: "_Side") -> tuple[list[np.ndarray], list[Event]]:
        call, inputs = self._theirs(self.pair.call_theirs), tensors(side.inputs)
        out, events = torch_events(side.model, lambda: call(side.model, inputs))
        return [to_numpy(o) for o in as_tuple(out)], events

    def _noise(self, of: Mapping["_Side", Any], error: Callable[[Any, Any], float]) -> float:
        """PyTorch's distance from itself, for the compared type."""
        noise = error(of[self.narrow], of[self.wide]) * self.shrink
        return noise if np.isfinite(noise) else 0.0

    def _outputs(self, runs: Mapping["_Side", list[np.ndarray]]) -> list[Check]:
        theirs = runs[self.theirs]
        ours = jax.jit(self._mine(self.pair.call_ours))(self.pair.ours, arrays(self.pair, self.inputs))
        ours = [np.asarray(o) for o in as_tuple(ours)]
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
        call, inputs = self._mine(self.pair.call_ours), arrays(self.pair, self.inputs)
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

    def _training(self, steps: int, learning_rate: float) -> tuple[list[Check], list[Check], Losses]:
        """(gradient checks, weight checks, losses): the first step's gradient is the one that is compared."""
        run = train(
            self.pair,
            {side.dtype: side.model for side in self.sides},
            dtype=self.dtype,
            steps=max(steps, 1),
            weights_after=max(self._weight_steps(steps), 1),
            learning_rate=learning_rate,
            before_step=self._before_step,
        )
        gradients = self._tensor_checks(
            run.gradients, {side: run.their_gradients[side.dtype] for side in self.sides}
        )
        weights = []
        if steps:
            weights = self._tensor_checks(
                run.weights, {side: run.their_weights[side.dtype] for side in self.sides}
            )
            # AdamW divides by the gradient's size: elements that are only noise move by a whole step.
            # How many there are is luck, so the weights share the model's largest noise.
            noise = max(check.noise for check in weights)
            weights = [self._check(check.name, check.error, noise) for check in weights]
        return gradients, weights, run.losses

    def _weight_steps(self, steps: int) -> int:
        return steps if self.dtype == "float64" else min(steps, FLOAT32_STEPS)

    def _before_step(self, step: int, inputs: Inputs, ours: nnx.Module, models: Models) -> None:
        """Compares what the routers choose at equal weights."""
        self.reported.step(step)
        if self.routing is None or self.later_fault is not None:
            return
        routing, _, _ = self._routed(inputs, ours, {side: models[side.dtype] for side in self.sides})
        if routing.first_fault:
            self.later_fault = _overturned(routing.first_fault, f" on the batch of step {step + 1}")

    def _loss_checks(self, losses: Losses, outputs: list[Check]) -> list[Check]:
        """Of every step at equal weights; in float64 also of every step of the two runs. Relative to the loss.

        In float32 runs that part are a note.
        """
        curves = {name: np.array(values) for name, values in vars(losses).items()}
        ours, theirs = curves["jax"], curves["pytorch"]
        reached = curves[f"jax_weights_{self.dtype}"]
        noise = _gap(curves["jax_weights_float32"], curves["jax_weights_float64"], reached) * self.shrink
        # One number may be lucky: it is held neither to less than another step shows nor to less than the outputs.
        noise = max(float(noise.max()), *(check.noise for check in outputs))
        checks = [
            self._check(f"loss {i}{EQUAL_WEIGHTS}", relative_error(a, b), noise)
            for i, (a, b) in enumerate(zip(ours, reached, strict=True), 1)
        ]
        spread = _gap(curves["pytorch_float32"], curves["pytorch_float64"], theirs) * self.shrink
        spread = np.maximum(spread, _gap(theirs, curves["pytorch_other_threads"], theirs))
        spread = np.maximum.accumulate(spread)  # what has once parted stays apart
        runs = [
            self._check(f"loss {i}", relative_error(a, b), max(float(own), noise))
            for i, (a, b, own) in enumerate(zip(ours, theirs, spread, strict=True), 1)
        ]
        if self.dtype == "float64":
            return checks + runs
        parted = next((check for check in runs if not check.ok), None)
        if parted and all(check.ok for check in checks):
            self.notes.append(
                f"{parted.name}: the two runs have parted (by {parted.error:.1e}); at equal weights no loss differs, "
                "and in float32 a single kink is enough: repeat in float64, where runs stay together"
            )
        return checks

    @property
    def sides(self) -> tuple["_Side", ...]:
        return self.narrow, self.wide

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
        self,
        outputs: list[Check],
        layers: list[LayerCheck],
        gradients: list[Check],
        weights: list[Check],
        losses: list[Check],
    ) -> Divergence | None:
        first = next((i for i, check in enumerate(layers) if not check.ok), len(layers))
        fault = self.routing.first_fault if self.routing else None
        if fault:  # an earlier layer that differs explains a later choice that does
            places = [i for i, c in enumerate(layers) if c.name == fault.name and c.kind == "output"]
            if not places or places[0] <= first:
                return _overturned(fault)
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
        return self._in_training(weights, losses)

    def _in_training(self, weights: list[Check], losses: list[Check]) -> Divergence | None:
        """What only the steps bring to light; the first step's outputs and gradients agree."""
        if self.later_fault:
            return self.later_fault
        unequal = [check for check in losses if not check.ok]
        if unequal and unequal[0].name.endswith(EQUAL_WEIGHTS):
            detail = f"outputs and gradients of the first batch agree, {unequal[0].name} does not"
            return Divergence("(model)", detail, unequal[0].error)
        wrong = [check for check in weights if not check.ok]
        if wrong:
            detail = f"gradients agree, {wrong[0].name} does not after the optimiser steps"
            return Divergence(wrong[0].name.rpartition(".")[0] or wrong[0].name, detail, wrong[0].error)
        if unequal:
            detail = f"the runs part: {unequal[0].name} differs, although at equal weights no loss does"
            return Divergence("(model)", detail, unequal[0].error)
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


def _gap(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """|a - b| / |scale|, and 0 where that is no number."""
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.abs(a - b) / np.abs(scale)
    return np.where(np.isfinite(gap), gap, 0.0)


def _overturned(fault: RouterAgreement, where: str = "") -> Divergence:
    detail = f"{fault.differing} of {fault.choices} choices differ{where}, by margins up to {fault.lost_margin:.1e}"
    return Divergence(fault.name, detail, fault.lost_margin)


@dataclass(frozen=True, eq=False)
class _Side:
    """A PyTorch model in one precision, and the inputs in the same."""

    model: torch.nn.Module
    dtype: DType
    inputs: dict[str, np.ndarray]
