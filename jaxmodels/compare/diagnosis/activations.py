"""Activations, gated units and softmax."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import Variant, instead, on_input, on_result, with_argument


class Form(NamedTuple):
    """An activation: what it is called, how it is written in Flax, and its function in PyTorch."""

    name: str
    flax: str
    function: Callable[[torch.Tensor], torch.Tensor]


FORMS = (
    Form("GELU in the exact form", "nnx.gelu(x, approximate=False)", F.gelu),
    Form("GELU in the tanh form", "nnx.gelu(x)", lambda x: F.gelu(x, approximate="tanh")),
    Form("GELU in the sigmoid form", "x * nnx.sigmoid(1.702 * x)", lambda x: x * torch.sigmoid(1.702 * x)),
    Form("SiLU", "nnx.silu", F.silu),
    Form("ReLU", "nnx.relu", F.relu),
    Form("ReLU6", "nnx.relu6", F.relu6),
    Form("the squared ReLU", "nnx.relu(x) ** 2", lambda x: F.relu(x) ** 2),
    Form("leaky ReLU with slope 0.01", "nnx.leaky_relu(x, 0.01)", lambda x: F.leaky_relu(x, 0.01)),
    Form("leaky ReLU with slope 0.1", "nnx.leaky_relu(x, 0.1)", lambda x: F.leaky_relu(x, 0.1)),
    Form("leaky ReLU with slope 0.2", "nnx.leaky_relu(x, 0.2)", lambda x: F.leaky_relu(x, 0.2)),
    Form("leaky ReLU with slope 0.3", "nnx.leaky_relu(x, 0.3)", lambda x: F.leaky_relu(x, 0.3)),
    Form("ELU", "nnx.elu", F.elu),
    Form("SELU", "nnx.selu", F.selu),
    Form("softplus", "nnx.softplus", F.softplus),
    Form("Mish", "jax.nn.mish", F.mish),
    Form("hard swish", "nnx.hard_swish", F.hardswish),
    Form("the sigmoid", "nnx.sigmoid", torch.sigmoid),
    Form("the hard sigmoid", "nnx.hard_sigmoid", F.hardsigmoid),
    Form("tanh", "nnx.tanh", torch.tanh),
    Form("the hard tanh", "nnx.hard_tanh", F.hardtanh),
    Form("the log sigmoid", "nnx.log_sigmoid", F.logsigmoid),
)
NAMES = {
    "gelu", "silu", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "softplus", "mish", "hardswish", "sigmoid",
    "hardsigmoid", "tanh", "hardtanh", "logsigmoid",
}  # fmt: skip
TEMPERATURES = (2.0, 0.5, 0.1, 10.0)


def activations(operation: Operation) -> Iterator[Variant]:
    """Another function, or another slope of the same."""
    name = operation.name
    if name not in NAMES:
        return
    own, cure = _own(operation)
    if own == "GELU in the exact form":
        tanh = with_argument(1, "approximate", "tanh")
        yield Variant("GELU form", "nnx.gelu uses the tanh form", "approximate=False", tanh)
    for form in FORMS:
        if form.name != own and not (own == FORMS[0].name and form is FORMS[1]):
            what = f"JAX computes {form.name}, PyTorch {own}"
            kind = "GELU form" if form.name.startswith("GELU") and name == "gelu" else "activation"
            yield Variant(kind, what, cure, _only_first(form.function))
    yield Variant("activation", f"JAX leaves out {own}", cure, _only_first(lambda x: x))
    if name == "softplus":
        for beta in (0.5, 1.0, 2.0, 10.0):
            if beta != operation.argument(1, "beta", 1.0):
                what = f"JAX computes softplus with β = {beta:g}"
                yield Variant("softplus", what, cure, with_argument(1, "beta", beta))


def gated_units(operation: Operation) -> Iterator[Variant]:
    """F.glu with its halves the other way round, or with neighbours in place of halves."""
    if operation.name != "glu":
        return
    dim = operation.argument(1, "dim", -1)
    size = operation.args[0].shape[dim] // 2
    what = "JAX takes the first half of a gated unit as the gate, PyTorch the second"
    swap = on_input(lambda x: torch.roll(x, size, dim))
    yield Variant("gate order", what, "x1 * nnx.sigmoid(x2)", swap)
    pairs = on_input(
        lambda x: torch.cat([x.movedim(dim, -1)[..., i::2] for i in (0, 1)], -1).movedim(-1, dim)
    )
    what = "JAX pairs neighbours in a gated unit, PyTorch the two halves"
    yield Variant("gate order", what, "jnp.split(x, 2, axis)", pairs)
    for form in FORMS[:5]:
        gate = instead(lambda x, dim=-1, f=form.function: x.chunk(2, dim)[0] * f(x.chunk(2, dim)[1]))
        yield Variant(
            "activation", f"JAX gates with {form.name}, PyTorch with the sigmoid", "nnx.sigmoid", gate
        )
    ungated = instead(lambda x, dim=-1: x.chunk(2, dim)[0])
    yield Variant("activation", "JAX leaves out the gate", "x1 * sigmoid(x2)", ungated)


def softmaxes(operation: Operation) -> Iterator[Variant]:
    """Softmax and its logarithm: the axis, a temperature, one in place of the other."""
    name = operation.name
    if name not in ("softmax", "log_softmax", "logsumexp"):
        return
    x = operation.args[0]
    dim = operation.argument(1, "dim", -1)
    for other in range(x.ndim):
        if other != dim % x.ndim:
            what = f"JAX takes the {name} over axis {other}, PyTorch over axis {dim % x.ndim}"
            yield Variant("softmax axis", what, f"axis={dim}", with_argument(1, "dim", other))
    if name == "logsumexp":
        return
    logarithm = name == "log_softmax"
    other_name, other = ("softmax", torch.softmax) if logarithm else ("log_softmax", torch.log_softmax)
    what = f"JAX takes the {other_name}, PyTorch the {name}"
    yield Variant("softmax form", what, f"nnx.{name}", instead(lambda x, *_, **__: other(x, dim)))
    yield Variant("softmax form", f"JAX leaves out the {name}", f"nnx.{name}", _only_first(lambda x: x))
    sigmoid = _only_first(F.logsigmoid if logarithm else torch.sigmoid)
    yield Variant("softmax form", f"JAX takes the sigmoid, PyTorch the {name}", f"nnx.{name}", sigmoid)
    for size in dict.fromkeys([*x.shape, *TEMPERATURES]):
        if size != 1:
            for factor, text in (
                (size**-0.5, f"{size:g} ** -0.5"),
                (1 / size, f"1 / {size:g}"),
                (size, f"{size:g}"),
            ):
                what = f"JAX multiplies the logits of the {name} by {text} times PyTorch's factor"
                change = on_input(lambda x, factor=factor: x * factor)
                yield Variant("scale", what, "PyTorch's factor", change)
    plus_one = instead(lambda x, *_, **__: _softmax_with_zero(x, dim))
    if not logarithm:
        yield Variant("softmax form", "JAX adds one to the softmax's denominator", "nnx.softmax", plus_one)
        nothing = on_result(lambda y: torch.nn.functional.normalize(y, p=1, dim=-2) if y.ndim > 1 else y)
        what = "JAX normalises the softmax once more, over the queries"
        yield Variant("softmax form", what, "one softmax", nothing)


def _softmax_with_zero(x: torch.Tensor, dim: int) -> torch.Tensor:
    zero = torch.zeros_like(x.narrow(dim, 0, 1))
    return torch.cat([x, zero], dim).softmax(dim).narrow(dim, 0, x.shape[dim])


def _only_first(function: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    return lambda _function, x, *_args, **_kwargs: function(x)


def _own(operation: Operation) -> tuple[str, str]:
    """What PyTorch computes, and how to write it in Flax."""
    match operation.name:
        case "gelu":
            tanh = operation.argument(1, "approximate", "none") == "tanh"
            form = FORMS[1] if tanh else FORMS[0]
            return form.name, "nnx.gelu(x, approximate=True)" if tanh else form.flax
        case "leaky_relu":
            slope = operation.argument(1, "negative_slope", 0.01)
            return f"leaky ReLU with slope {slope:g}", f"nnx.leaky_relu(x, {slope:g})"
        case "softplus":
            beta = operation.argument(1, "beta", 1.0)
            if math.isclose(beta, 1.0):
                return "softplus", "nnx.softplus"
            return f"softplus with β = {beta:g}", f"nnx.softplus({beta:g} * x) / {beta:g}"
        case "elu" | "celu":
            alpha = operation.argument(1, "alpha", 1.0)
            name = operation.name.upper()
            return (
                name if alpha == 1 else f"{name} with α = {alpha:g}"
            ), f"nnx.{operation.name}(x, {alpha:g})"
    names = {"silu": "SiLU", "relu": "ReLU", "relu6": "ReLU6", "selu": "SELU", "mish": "Mish"}
    names |= {"hardswish": "hard swish", "sigmoid": "the sigmoid", "hardsigmoid": "the hard sigmoid"}
    names |= {"hardtanh": "the hard tanh", "logsigmoid": "the log sigmoid"}
    own = names.get(operation.name, operation.name)
    return own, next((form.flax for form in FORMS if form.name == own), f"jax.nn.{operation.name}")
