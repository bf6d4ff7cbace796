"""The updates of torch.optim's optimisers written down once more, with a switch for every convention.

Where an optimiser in JAX leaves PyTorch's path, the same gradients are followed under one other convention at a time.
The one that ends where JAX ends is the explanation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch

from jaxmodels.compare.torch_optimizers import Lion


Array = np.ndarray
Kind = Literal["sgd", "adam", "lion", "adafactor"]
# Values that people set these to, and defaults of libraries.
COMMON_EPSILONS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1e-10, 1e-15, 0.0)
COMMON_BETAS = {"b1": (0.9, 0.8, 0.95, 0.0), "b2": (0.999, 0.99, 0.98, 0.95, 0.9)}
COMMON_DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.05)
SMALLEST_AVERAGED = 1e-3  # Adafactor's least size of a parameter


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one parameter is updated. The defaults are PyTorch's conventions.

    Attributes:
      kind: which optimiser.
      b1, b2, eps, weight_decay, momentum, dampening, nesterov: its settings.
      decay: weight decay is added to the gradient ("l2"), or taken from the weights, times the learning rate
        ("decoupled") or not ("unscaled").
      decay_vectors: whether parameters of one axis decay.
      epsilon: added "outside" the root, "inside" of it, or to the root "before" the bias correction.
      bias_correction: of Adam's moments.
      dampen_first: whether the first gradient is dampened too.
      smallest_factored: the least length of both axes whose second moments Adafactor factors.
      capped_rate: whether Adafactor's rate is at most 1 / sqrt(update).
      shift: by how many updates the schedule is ahead.
      rate: a factor of the learning rate.
      gradient: a factor of the gradients.
      gradients: which ones: as the optimiser was "given" them, "raw" as they were before its hooks, or clipped
        in another way.
    """

    kind: Kind
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    decay: Literal["l2", "decoupled", "unscaled"] = "decoupled"
    decay_vectors: bool = True
    epsilon: Literal["outside", "inside", "before"] = "outside"
    bias_correction: bool = True
    dampen_first: bool = False
    smallest_factored: int = 0
    capped_rate: bool = True
    shift: int = 0
    rate: float = 1.0
    gradient: float = 1.0
    gradients: str = "given"


@dataclass(frozen=True)
class Convention:
    """Something that the two libraries, or two users, mean differently.

    Attributes:
      sentence: what JAX does, and what PyTorch does.
      changes: the fields of the rule that turn PyTorch's into JAX's.
      is_constant: whether it is another number alone, rather than another meaning.
    """

    sentence: str
    changes: dict[str, Any]
    is_constant: bool = False


@dataclass(frozen=True)
class Trace:
    """What PyTorch's optimiser was given for one parameter.

    Attributes:
      start: the weights before the first update.
      gradients: for every name that `Rule.gradients` may have, the gradient of each update.
      rates: the learning rate of each update, and of the one that would follow.
    """

    start: Array
    gradients: dict[str, list[Array]]
    rates: list[float]


def rule_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Rule | None:
    """The rule of a group of parameters; None for an optimiser that is not written down here."""
    if any(group.get(name) for name in ("maximize", "amsgrad")):
        return None
    decay = float(group.get("weight_decay", 0.0))
    match optimizer:
        case torch.optim.Adam():  # AdamW is one, with this flag
            kind = "decoupled" if group.get("decoupled_weight_decay") else "l2"
            b1, b2 = group["betas"]
            return Rule(kind="adam", b1=b1, b2=b2, eps=group["eps"], weight_decay=decay, decay=kind)
        case torch.optim.SGD():
            settings = {name: group[name] for name in ("momentum", "dampening", "nesterov")}
            return Rule(kind="sgd", weight_decay=decay, decay="l2", **settings)
        case Lion():
            b1, b2 = group["betas"]
            return Rule(kind="lion", b1=b1, b2=b2, weight_decay=decay)
        case torch.optim.Adafactor():
            return Rule(kind="adafactor", weight_decay=decay)
    return None


def follow(rule: Rule, trace: Trace) -> list[Array]:
    """The weights after every update under a rule."""
    weights = trace.start.astype(np.float64)
    update = {"sgd": _sgd, "adam": _adam, "lion": _lion, "adafactor": _adafactor}[rule.kind]
    state: dict[str, Array] = {}
    after = []
    for t in range(len(trace.gradients[rule.gradients])):
        rate = rule.rate * trace.rates[min(max(t + rule.shift, 0), len(trace.rates) - 1)]
        gradient = rule.gradient * trace.gradients[rule.gradients][t].astype(np.float64)
        decay = rule.weight_decay if rule.decay_vectors or weights.ndim > 1 else 0.0
        if rule.decay == "l2":
            gradient = gradient + decay * weights
        step = update(rule, state, weights, gradient, rate, t + 1)
        if rule.decay != "l2":
            step = step + decay * weights * (rate if rule.decay == "decoupled" else 1.0)
        weights = weights - step
        after.append(weights)
    return after


def _sgd(rule: Rule, state: dict[str, Array], weights: Array, gradient: Array, rate: float, t: int) -> Array:
    if not rule.momentum:
        return rate * gradient
    dampening = rule.dampening if t > 1 or rule.dampen_first else 0.0
    state["sum"] = rule.momentum * state.get("sum", np.zeros_like(weights)) + (1 - dampening) * gradient
    return rate * (gradient + rule.momentum * state["sum"] if rule.nesterov else state["sum"])


def _adam(rule: Rule, state: dict[str, Array], weights: Array, gradient: Array, rate: float, t: int) -> Array:
    zero = np.zeros_like(weights)
    state["mean"] = rule.b1 * state.get("mean", zero) + (1 - rule.b1) * gradient
    state["square"] = rule.b2 * state.get("square", zero) + (1 - rule.b2) * gradient**2
    of_mean, of_square = (1 - rule.b1**t, 1 - rule.b2**t) if rule.bias_correction else (1.0, 1.0)
    mean, square = state["mean"] / of_mean, state["square"] / of_square
    if rule.epsilon == "inside":
        root = np.sqrt(square + rule.eps)
    elif rule.epsilon == "before":
        root = (np.sqrt(state["square"]) + rule.eps) / np.sqrt(of_square)
    else:
        root = np.sqrt(square) + rule.eps
    return rate * np.divide(mean, root, out=np.zeros_like(mean), where=root > 0)


def _lion(rule: Rule, state: dict[str, Array], weights: Array, gradient: Array, rate: float, t: int) -> Array:
    mean = state.get("mean", np.zeros_like(weights))
    state["mean"] = mean + (1 - rule.b2) * (gradient - mean)
    return rate * np.sign(rule.b1 * mean + (1 - rule.b1) * gradient)


def _adafactor(
    rule: Rule, state: dict[str, Array], weights: Array, gradient: Array, rate: float, t: int
) -> Array:
    new = float(t) ** -0.8
    limit = float(np.finfo(np.float64).eps)
    if weights.ndim > 1 and min(weights.shape[-2:]) >= rule.smallest_factored:
        for name, axis in (("rows", -1), ("columns", -2)):
            mean = (gradient**2).mean(axis, keepdims=True)
            state[name] = state.get(name, np.zeros_like(mean)) * (1 - new) + new * mean
        square = state["rows"] @ state["columns"]
        square = square / np.maximum(state["rows"].mean(-2, keepdims=True), limit)
    else:
        state["square"] = state.get("square", np.zeros_like(weights)) * (1 - new) + new * gradient**2
        square = state["square"]
    step = gradient / np.sqrt(np.maximum(square, limit**2))
    step = step / max(1.0, float(np.sqrt(np.mean(step**2))))
    size = max(SMALLEST_AVERAGED, float(np.sqrt(np.mean(weights**2))))
    return step * size * (min(rate, t**-0.5) if rule.capped_rate else rate)


def conventions(rule: Rule, trace: Trace) -> Iterator[Convention]:
    """Other conventions than those of a rule, the likeliest first."""
    yield from _conventions_of_kind(rule)
    yield from _conventions_of_decay(rule)
    yield from _conventions_of_loop(trace)
    yield from _other_constants(rule)


def _conventions_of_kind(rule: Rule) -> Iterator[Convention]:
    if rule.kind == "adam":
        inside = "epsilon is added inside the square root in JAX (optax's eps_root), outside in PyTorch"
        yield Convention(inside, {"epsilon": "inside"})
        before = "epsilon is added before the bias correction of the root in JAX, after it in PyTorch"
        yield Convention(before, {"epsilon": "before"})
        yield Convention("JAX does not correct the bias of the moments", {"bias_correction": False})
    if rule.kind == "adafactor":
        factored = (
            "optax factors the second moments of matrices only where both axes have at least 128 entries, PyTorch "
            "always"
        )
        yield Convention(factored, {"smallest_factored": 128})
        capped = "PyTorch limits the learning rate to 1 / sqrt(update), optax does not"
        yield Convention(capped, {"capped_rate": False})
    if rule.kind == "sgd" and rule.momentum:
        if rule.dampening:
            none = f"PyTorch dampens new gradients by {rule.dampening:g}; optax's momentum has no dampening"
            yield Convention(none, {"dampening": 0.0})
            first = "JAX dampens the first gradient too, PyTorch does not"
            yield Convention(first, {"dampen_first": True})
        average = "JAX averages the gradients, with weight 1 - momentum for the new one; PyTorch adds them up"
        yield Convention(average, {"dampening": rule.momentum, "dampen_first": True})
        yield Convention("Nesterov's momentum is used on one side only", {"nesterov": not rule.nesterov})
        yield Convention("JAX has no momentum", {"momentum": 0.0}, is_constant=True)
    elif rule.kind == "sgd":
        yield Convention("JAX has a momentum of 0.9, PyTorch has none", {"momentum": 0.9}, is_constant=True)


def _conventions_of_decay(rule: Rule) -> Iterator[Convention]:
    where = {
        "l2": "adds it to the gradient (L2)",
        "decoupled": "takes it from the weights, times the learning rate",
        "unscaled": "takes it from the weights and does not multiply it by the learning rate",
    }
    if rule.weight_decay:
        for decay in where:
            if decay != rule.decay:
                sentence = f"weight decay: JAX {where[decay]}; PyTorch {where[rule.decay]}"
                yield Convention(sentence, {"decay": decay})
        yield Convention("JAX does not decay parameters of one axis, PyTorch does", {"decay_vectors": False})
    for value in COMMON_DECAYS:
        if value != rule.weight_decay:
            default = " (the default of optax.adamw)" if value == 1e-4 else ""
            sentence = f"the weight decay is {value:g} in JAX{default} and {rule.weight_decay:g} in PyTorch"
            yield Convention(sentence, {"weight_decay": value}, is_constant=True)
            if not rule.weight_decay and rule.decay == "l2":
                yield Convention(sentence, {"weight_decay": value, "decay": "decoupled"}, is_constant=True)


def _conventions_of_loop(trace: Trace) -> Iterator[Convention]:
    if len(set(trace.rates)) > 1:
        for shift, word in ((1, "ahead of"), (-1, "behind")):
            yield Convention(f"JAX's schedule is one update {word} PyTorch's", {"shift": shift})
    sentences = {
        "raw": "PyTorch clips the gradients, JAX does not",
        "global": "PyTorch's clip_grad_norm_ adds 1e-6 to the norm, optax does not",
        "each": "JAX clips each parameter's gradient by its own norm, PyTorch all of them by their common norm",
        "sum": "JAX uses the mean of accumulated gradients and PyTorch their sum, or the other way round",
    }
    for name, sentence in sentences.items():
        if name in trace.gradients:
            yield Convention(sentence, {"gradients": name})
    yield Convention("JAX adds the gradient where it should subtract it", {"rate": -1.0}, is_constant=True)


def _other_constants(rule: Rule) -> Iterator[Convention]:
    if rule.kind == "adam":
        for value in COMMON_EPSILONS:
            if value != rule.eps:
                sentence = f"epsilon is {value:g} in JAX and {rule.eps:g} in PyTorch"
                yield Convention(sentence, {"eps": value}, is_constant=True)
    if rule.kind in ("adam", "lion"):
        for name, values in COMMON_BETAS.items():
            for value in values:
                if value != getattr(rule, name):
                    sentence = f"{name} is {value:g} in JAX and {getattr(rule, name):g} in PyTorch"
                    yield Convention(sentence, {name: value}, is_constant=True)


def combined(rule: Rule, trace: Trace, most: int) -> Iterator[tuple[Convention, ...]]:
    """Single conventions, then pairs and larger sets of unlike ones."""
    known = list(conventions(rule, trace))
    for count in range(1, most + 1):
        for chosen in combinations(known, count):
            fields = [name for one in chosen for name in one.changes]
            if len(fields) == len(set(fields)):
                yield chosen


def changed(rule: Rule, chosen: Sequence[Convention]) -> Rule:
    """A rule under other conventions."""
    for convention in chosen:
        rule = replace(rule, **convention.changes)
    return rule
