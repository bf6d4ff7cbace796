"""optax's optimiser against torch.optim's, on the same weights and the same gradients, in float64."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxmodels.compare.calls import failures_explained
from jaxmodels.compare.jax_types import coarser_operation
from jaxmodels.compare.noise import FACTOR, NoiseFloor, relative_error, rounding_noise
from jaxmodels.compare.optax_optimizers import decay_mask, optax_optimizer
from jaxmodels.compare.optimizer_rules import Rule, Trace, changed, combined, conventions, follow, rule_of
from jaxmodels.compare.result import OptimizerComparison
from jaxmodels.compare.torch_optimizers import Loop, TorchOptimizer
from jaxmodels.compare.training import Training


Arrays = dict[str, np.ndarray]
LARGEST_SAMPLE = 4096  # entries of a parameter on which conventions are tried
CONSTANT_FACTOR = 1e-9  # clipped gradients are the raw ones times one number to this accuracy
SAME_CLIP = 1e-6  # what clip_grad_norm_ adds to the norm
# A convention explains a difference if no larger share of it is left; optax computes some rates in float32.
LARGEST_REST = 1e-4
# How many conventions are tried together; Adafactor's few differ all at once.
MOST_TOGETHER = {"adafactor": 3}


def compare_optimizers(
    training: Training,
    weights: Any,
    gradients: Sequence[Any],
    *,
    ours: optax.GradientTransformation | None = None,
    export: Callable[[Any], Mapping[str, Any]] = dict,
) -> OptimizerComparison:
    """Follows both optimisers through the same gradients, names the first update that differs, and why.

    Args:
      training: an optimiser by name, or `optimizer_ours` and `optimizer_theirs`.
      weights: the parameters as optax gets them; by default a dict of arrays by name.
      gradients: of every batch, alike.
      ours: the optax optimiser, where it is already built.
      export: from such a tree to arrays by PyTorch's names, in its layout.

    Raises:
      PairError: one of the two optimisers fails.
    """
    training.require_both_sides()
    start = {name: np.asarray(value, np.float64) for name, value in export(weights).items()}
    if ours is None:
        ours = optax_optimizer(training, decay_mask(training, {name: name for name in start}))
    in_jax, coarser = _optax_weights(ours, training, weights, gradients, export)
    with jax.enable_x64(True):
        exported = [{k: np.asarray(v, np.float64) for k, v in export(g).items()} for g in gradients]
    runs = {kind: _TorchRun(training, start, exported, kind) for kind in (torch.float32, torch.float64)}
    in_torch = runs[torch.float64]
    tolerances = [
        _tolerance(float32, float64, start if coarser else {})
        for float32, float64 in zip(runs[torch.float32].weights, in_torch.weights, strict=True)
    ]
    errors = [
        {name: relative_error(mine[name], theirs[name]) for name in theirs}
        for mine, theirs in zip(in_jax, in_torch.weights, strict=True)
    ]
    worst = [max(one, key=lambda name: one[name]) for one in errors]
    first = next((i for i, name in enumerate(worst) if not errors[i][name] <= tolerances[i]), None)
    parameter = None if first is None else worst[first]
    return OptimizerComparison(
        updates=len(errors),
        error=max(errors[-1].values()) if errors else 0.0,
        tolerance=tolerances[-1] if tolerances else 0.0,
        first_difference=None if first is None else first + 1,
        parameter=parameter,
        explanation=None if parameter is None else _explanation(in_torch, in_jax, tolerances, parameter),
        note=None if coarser is None else f"optax computes in {coarser[1]} inside (first in {coarser[0]})",
        effects=[] if training.own else _effects(training, start, exported, in_torch),
    )


def _optax_weights(
    optimizer: optax.GradientTransformation,
    training: Training,
    weights: Any,
    gradients: Sequence[Any],
    export: Callable[[Any], Mapping[str, Any]],
) -> tuple[list[Arrays], tuple[str, str] | None]:
    """The weights after every update, and the first operation that is coarser than float64."""
    after = []
    way_out = "it gets the parameters of the Flax model, and computes in float64"
    with jax.enable_x64(True), failures_explained("the optimiser in optax", way_out):
        values = _as_float64(weights)
        state = optimizer.init(values)

        @jax.jit
        def update(values, gradient, state):
            updates, state = optimizer.update(gradient, state, values)
            return optax.apply_updates(values, updates), state

        first = _as_float64(gradients[0])
        coarser = coarser_operation(jax.make_jaxpr(update)(values, first, state).jaxpr)
        for i, gradient in enumerate(gradients, 1):
            values, state = update(values, _as_float64(gradient), state)
            if i % training.accumulate == 0:
                after.append({name: np.array(value, np.float64) for name, value in export(values).items()})
    return after, coarser


def _as_float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), tree)


class _TorchRun:
    """PyTorch's optimiser through all gradients, and what it was given at each update."""

    def __init__(
        self,
        training: Training,
        start: Arrays,
        gradients: Sequence[Arrays],
        kind: torch.dtype,
        loop: Loop | None = None,
    ) -> None:
        masters = {name: torch.from_numpy(value.copy()).to(kind) for name, value in start.items()}
        optimizer = TorchOptimizer(training, masters, loop)
        self.start, self.weights = start, list[Arrays]()
        self.given, self.raw, self.rates = list[Arrays](), list[Arrays](), list[dict[str, float]]()
        for batch in gradients:
            optimizer.step({name: torch.from_numpy(value).to(kind) for name, value in batch.items()})
            if optimizer.updates > len(self.weights):
                self.weights.append(_arrays(masters))
                self.given.append(_arrays(optimizer.given))
                self.raw.append(_arrays(optimizer.raw))
                self.rates.append(optimizer.rates)
        self.averages = _arrays(optimizer.average)
        for _ in range(
            training.accumulate - len(gradients) % training.accumulate
        ):  # for the rates that follow
            optimizer.step({name: torch.zeros_like(master) for name, master in masters.items()})
        self.rates.append(optimizer.rates)
        self.accumulate = training.accumulate
        self.rules = optimizer.per_parameter(rule_of)

    def trace(self, name: str) -> Trace:
        """What the optimiser was given for one parameter, and what it would get under other conventions."""
        gradients = {"given": self._of(self.given, name)}
        if any(not np.array_equal(a[name], b[name]) for a, b in zip(self.given, self.raw, strict=True)):
            gradients["raw"] = self._of(self.raw, name)
            gradients |= self._clipped(name)
        if self.accumulate > 1:
            gradients["sum"] = [self.accumulate * one for one in gradients["given"]]
        return Trace(self.start[name], gradients, [rates[name] for rates in self.rates])

    def _of(self, updates: Sequence[Arrays], name: str) -> list[np.ndarray]:
        return [one[name] for one in updates]

    def _clipped(self, name: str) -> dict[str, list[np.ndarray]]:
        """Gradients under other ways to clip norms; empty where PyTorch's hooks do not clip a norm."""
        norms = [np.sqrt(sum(float(np.sum(x**2)) for x in raw.values())) for raw in self.raw]
        limits = []
        for raw, given, norm in zip(self.raw, self.given, norms, strict=True):
            largest = max(raw, key=lambda key: float(np.abs(raw[key]).max(initial=0.0)))
            size = float(np.abs(raw[largest]).max(initial=0.0))
            factor = float(np.abs(given[largest]).max(initial=0.0)) / size if size else 1.0
            if any(np.abs(given[k] - factor * raw[k]).max(initial=0.0) > CONSTANT_FACTOR * size for k in raw):
                return {}
            if factor < 1:
                limits.append(factor * (norm + SAME_CLIP))
        limit = max(limits, default=np.inf)
        own = [float(np.sqrt(np.sum(raw[name] ** 2))) for raw in self.raw]
        return {
            kind: [raw[name] * min(1.0, limit / max(n, 1e-300)) for raw, n in zip(self.raw, ns, strict=True)]
            for kind, ns in (("global", norms), ("each", own))
        }


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: tensor.detach().double().numpy().copy() for name, tensor in tensors.items()}


def _tolerance(float32: Arrays, float64: Arrays, start: Arrays) -> float:
    """What rounding allows: the noise of float32 in units of float64, the largest of all parameters.

    Args:
      start: the first weights, where optax is coarser inside: then all that was added to them may be rounded so.
    """
    floor = NoiseFloor("float64")
    noise = max((rounding_noise(float32[name], value) for name, value in float64.items()), default=0.0)
    moved = max((relative_error(value, float64[name]) for name, value in start.items()), default=0.0)
    return FACTOR * max(noise * floor.scale, floor.least, moved * NoiseFloor("float32").least)


@dataclass(frozen=True)
class _Sample:
    """Some entries of one parameter: their rule, trace and weights after each update, and the difference there."""

    rule: Rule
    trace: Trace
    weights: list[np.ndarray]
    errors: list[float]

    def agrees(self, rule: Rule, tolerances: Sequence[float]) -> bool:
        """Whether the rule leads to these weights, up to a small share of the difference to be explained."""
        steps = zip(follow(rule, self.trace), self.weights, self.errors, tolerances, strict=True)
        return all(
            relative_error(mine, expected) <= max(tolerance, LARGEST_REST * error)
            for mine, expected, error, tolerance in steps
        )


def _sample(run: _TorchRun, in_jax: Sequence[Arrays], name: str, weights: Sequence[Arrays]) -> _Sample | None:
    """Of a parameter's entries only some, where its rule treats each alike."""
    rule, trace = run.rules[name], run.trace(name)
    if rule is None:
        return None
    errors = [
        relative_error(mine[name], theirs[name]) for mine, theirs in zip(in_jax, run.weights, strict=True)
    ]
    if rule.kind == "adafactor":
        return _Sample(rule, trace, [one[name] for one in weights], errors)
    chosen = np.linspace(0, trace.start.size - 1, min(trace.start.size, LARGEST_SAMPLE)).astype(int)
    shape = (-1,) if trace.start.ndim < 2 else (-1, 1)

    def some(array: np.ndarray) -> np.ndarray:
        return array.ravel()[chosen].reshape(shape)

    gradients = {kind: [some(one) for one in values] for kind, values in trace.gradients.items()}
    sampled = Trace(some(trace.start), gradients, trace.rates)
    return _Sample(rule, sampled, [some(one[name]) for one in weights], errors)


def _explanation(
    run: _TorchRun, in_jax: Sequence[Arrays], tolerances: Sequence[float], parameter: str
) -> str | None:
    """The conventions under which PyTorch's rule ends where JAX does; None where none that is known does."""
    theirs = _sample(run, in_jax, parameter, run.weights)
    ours = _sample(run, in_jax, parameter, in_jax)
    if theirs is None or ours is None or not theirs.agrees(theirs.rule, tolerances):
        return None
    others = [one for name in run.start if (one := _sample(run, in_jax, name, in_jax)) is not None]
    for chosen in combined(ours.rule, ours.trace, MOST_TOGETHER.get(ours.rule.kind, 2)):
        if ours.agrees(changed(ours.rule, chosen), tolerances) and all(
            one.agrees(_changed_like(ours.rule, one.rule, changed(one.rule, chosen)), tolerances)
            for one in others
        ):
            return "; ".join(convention.sentence for convention in chosen)
    return None


def _changed_like(explained: Rule, rule: Rule, other: Rule) -> Rule:
    """Another value of the weight decay concerns the parameters that decay, if the explained one does."""
    if explained.weight_decay and not rule.weight_decay:
        return replace(other, weight_decay=0.0)
    return other


def _effects(
    training: Training, start: Arrays, gradients: Sequence[Arrays], run: _TorchRun
) -> list[tuple[str, float]]:
    """How far the weights would be apart if one side had another convention, the largest first."""
    effects: dict[str, float] = {}
    for name in start if run.weights else ():
        rule, trace = run.rules[name], run.trace(name)
        if rule is None:
            continue
        for convention in conventions(rule, trace):
            if convention.is_constant:
                continue
            other = follow(changed(rule, [convention]), trace)[-1]
            effect = relative_error(other, run.weights[-1][name])
            effects[convention.sentence] = max(effects.get(convention.sentence, 0.0), effect)
    for sentence, loop in _other_loops(training):
        other_run = _TorchRun(training, start, gradients, torch.float64, loop)
        averages = training.ema_decay is not None
        mine, theirs = (one.averages if averages else one.weights[-1] for one in (other_run, run))
        effects[sentence] = max(relative_error(mine[name], theirs[name]) for name in theirs)
    least = FACTOR * NoiseFloor("float64").least
    found = [(sentence, effect) for sentence, effect in effects.items() if effect > least]
    return sorted(found, key=lambda one: one[1], reverse=True)


def _other_loops(training: Training) -> list[tuple[str, Loop]]:
    loops = []
    if training.accumulate > 1:
        added = "gradients of accumulated batches are added up, as backward() does; optax.MultiSteps averages them"
        loops.append((added, Loop(sum_gradients=True)))
        if training.clip_norm is not None or training.clip_value is not None:
            loops.append(
                (
                    "the gradient of each batch is clipped, rather than the accumulated one",
                    Loop(clip_each=True),
                )
            )
    if training.warmup_steps or training.schedule != "constant":
        loops.append(("the schedule counts the first update as 1, rather than as 0", Loop(first_update=1)))
    if training.ema_decay is not None:
        later = (
            "the moving average starts at the weights after the first update, as AveragedModel's does, rather than at "
            "the initial ones"
        )
        loops.append((later, Loop(average_from_start=False)))
    return loops
