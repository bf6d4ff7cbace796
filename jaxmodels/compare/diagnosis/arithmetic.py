"""Sums, products, means and the constants in them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import (
    Variant,
    instead,
    number,
    on_input,
    on_result,
    sizes_of,
    with_argument,
)


BASES = (10.0, 100.0, 1000.0, 10000.0, 50000.0, 100000.0, 500000.0, 1e6)
MOST_CONSTANTS = 40


def sums(operation: Operation) -> Iterator[Variant]:
    """Residual connections: left out, doubled, subtracted, scaled."""
    name = operation.name
    if name not in ("add", "sub", "iadd", "isub") or not _two_tensors(operation):
        return
    alpha = operation.kwargs.get("alpha", 1)
    sign = alpha if name.endswith("add") else -alpha
    ways: list[tuple[str, str, Callable[[Any, Any], Any]]] = [
        ("residual missing", "JAX leaves out the second term of a sum", lambda a, b: a + 0 * b),
        ("residual missing", "JAX leaves out the first term of a sum", lambda a, b: sign * b + 0 * a),
        ("residual twice", "JAX adds the first term of a sum twice", lambda a, b: 2 * a + sign * b),
        ("residual twice", "JAX adds the second term of a sum twice", lambda a, b: a + 2 * sign * b),
        ("sign", "JAX subtracts where PyTorch adds, or the reverse", lambda a, b: a - sign * b),
        ("sign", "JAX subtracts in the other order", lambda a, b: sign * b - a),
        ("residual scale", "JAX halves a sum", lambda a, b: (a + sign * b) / 2),
        ("residual scale", "JAX divides a sum by √2", lambda a, b: (a + sign * b) / math.sqrt(2)),
    ]
    for kind, what, compute in ways:
        yield Variant(kind, what, "PyTorch's sum", instead(lambda a, b, *_, f=compute, **__: f(a, b)))
    shape = [size for size in operation.args[0].shape if size > 1]
    for size in dict.fromkeys([*shape[-1:], *shape[:-1]]):
        for power, text in ((0.5, f"√{size}"), (-0.5, f"1 / √{size}")):
            for place, term in enumerate(("first", "second")):
                what = f"JAX multiplies the {term} term of a sum by {text}, PyTorch does not"
                change = on_input(lambda x, f=size**power: f * x, place)
                yield Variant("scale", what, "leaving the factor out", change)
    for place, term in enumerate(("first", "second")):
        x = operation.args[place]
        for axis in range(x.ndim):
            if x.shape[axis] > 1:
                for shift in (1, -1):
                    what = f"the {term} term of a sum is shifted by {-shift:+d} along axis {axis} in JAX"
                    change = on_input(lambda x, s=shift, a=axis: torch.roll(x, s, a), place)
                    yield Variant("index offset", what, "PyTorch's first index", change)


def constants(operation: Operation) -> Iterator[Variant]:
    """A factor or a divisor that is a plain number."""
    name = operation.name
    if name in ("mul", "div", "rdiv", "true_divide", "imul", "idiv", "multiply", "divide"):
        place = next((i for i, arg in enumerate(operation.args[:2]) if _is_number(arg)), None)
        if place is None or name == "rdiv":
            return
        own = float(operation.args[place])
        if own == 0 or not math.isfinite(own):
            return
        divides = "div" in name and place == 1
        factor = 1 / own if divides else own
        sizes = sizes_of(operation)
        verb = "divides" if divides else "multiplies"
        cure = f"{'a division by' if divides else 'the factor'} {number(own, sizes)}"
        for other in _factors(factor, sizes):
            text = "does not scale" if other == 1 else f"multiplies by {number(other, sizes)}"
            what = f"JAX {text}, PyTorch {verb} by {number(own, sizes)}"
            change = with_argument(place, "other", 1 / other if divides else other)
            yield Variant("scale", what, cure, change)
    elif (
        name == "sub" and len(operation.args) == 2 and any(map(_is_number, operation.args))
    ) or name == "rsub":
        what = "JAX subtracts in the other order"
        yield Variant("sign", what, "PyTorch's order", on_result(lambda y: -y))
    elif name == "add" and len(operation.args) == 2 and any(map(_is_number, operation.args)):
        own = next(arg for arg in operation.args if _is_number(arg))
        if abs(own) >= 1e-2:
            what = f"JAX leaves out the constant {own:g}"
            yield Variant("constant", what, f"adding {own:g}", on_result(lambda y: y - own))
    elif name in ("rpow", "pow"):
        yield from _powers(operation)


def _factors(own: float, sizes: list[int]) -> list[float]:
    """Factors that may stand in place of one, without it."""
    found = [1.0, own * own, math.sqrt(abs(own)), 1 / own, -own, 2 * own, own / 2]
    found += [size**power for size in sizes for power in (-0.5, -1.0, -0.25, 0.5)]
    others = [one for one in found if abs(one - own) > 1e-6 * abs(own)]
    return list(dict.fromkeys(others))[:MOST_CONSTANTS]


def _powers(operation: Operation) -> Iterator[Variant]:
    base, exponent = operation.args[:2] if operation.name == "pow" else operation.args[1::-1]
    if operation.name == "rpow":
        base, exponent = operation.args[1], operation.args[0]
    if _is_number(base):
        for other in BASES:
            if abs(other / base - 1) > 1e-6:
                what = f"the base of the powers is {other:g} in JAX, {base:g} in PyTorch"
                change = instead(lambda *_, o=other, **__: o**exponent)
                yield Variant("rotary base", what, f"{base:g}", change)
        yield Variant(
            "sign", "JAX takes the power with the other sign", "PyTorch's sign", on_result(lambda y: 1 / y)
        )


def angles(operation: Operation) -> Iterator[Variant]:
    """Sines and cosines of positions: exchanged, shifted, or of another base."""
    if operation.name not in ("sin", "cos"):
        return
    x = operation.args[0]
    swapped = torch.cos if operation.name == "sin" else torch.sin
    yield Variant(
        "sine and cosine", "JAX exchanges sine and cosine", "PyTorch's order", instead(lambda x: swapped(x))
    )
    if operation.name == "sin":
        yield Variant(
            "sign", "JAX turns the other way: its sine is negative", "PyTorch's sign", on_result(lambda y: -y)
        )
    if x.ndim < 2 or x.shape[-2] < 2:
        return
    step = x.narrow(-2, 1, 1) - x.narrow(-2, 0, 1)  # the angle of one position
    for shift in (1, -1):
        what = f"positions begin {abs(shift)} {'later' if shift > 0 else 'earlier'} in JAX"
        yield Variant(
            "index offset", what, "PyTorch's first position", on_input(lambda x, s=shift: x + s * step)
        )
    half = x.shape[-1] // 2
    paired = (
        x.shape[-1] > 1 and bool((step[..., :half] == step[..., half:]).all())
        if x.shape[-1] % 2 == 0
        else False
    )
    slowest = float(step.abs().min())
    if not 0 < slowest < 1:
        return
    count = half if paired else x.shape[-1]
    if count > 1:
        base = slowest ** (-count / (count - 1))
        for other in BASES:
            if abs(other / base - 1) > 1e-3:
                power = math.log(other) / math.log(base)
                change = on_input(lambda x, p=power: x * (step.abs() ** (p - 1)))
                what = f"the base of the angles is {other:g} in JAX, {base:.4g} in PyTorch"
                yield Variant("rotary base", what, f"{base:.4g}", change)
        shifted = on_input(lambda x: x * step.abs() ** ((count - 1) / count - 1) if count > 1 else x)
        alternative = on_input(lambda x: x * step.abs() ** (count / (count - 1) - 1))
        for change, text in ((shifted, "dim"), (alternative, "dim - 1")):
            what = f"JAX divides the exponents of the angles by another number ({text})"
            yield Variant("rotary base", what, "PyTorch's exponents", change)
    if paired:
        pairs = on_input(lambda x: x if _in_pairs(x) else x[..., :half].repeat_interleave(2, -1))
        what = "JAX repeats each angle for neighbours, PyTorch for the two halves"
        yield Variant("pairing", what, "jnp.concatenate([angles, angles], -1)", pairs)


def _in_pairs(x: torch.Tensor) -> bool:
    """Whether neighbours are equal already, since what made the angles was changed too."""
    return bool((x[..., 0::2] == x[..., 1::2]).all())


def logarithms(operation: Operation) -> Iterator[Variant]:
    """Bits for nats, and the like."""
    names = {"log": ("nats", 1.0), "log2": ("bits", math.log(2)), "log10": ("digits", math.log(10))}
    if operation.name in names:
        unit, own = names[operation.name]
        for other, (other_unit, scale) in names.items():
            if other != operation.name:
                what = f"JAX takes jnp.{other} ({other_unit}), PyTorch {operation.name} ({unit})"
                change = on_result(lambda y, f=own / scale: y * f)
                yield Variant("logarithm", what, f"jnp.{operation.name}", change)
    elif operation.name in ("sqrt", "rsqrt", "square", "exp", "abs"):
        what = f"JAX leaves out {operation.name}"
        yield Variant("operation missing", what, f"jnp.{operation.name}", instead(lambda x, *_, **__: x))
        if operation.name == "exp":
            yield Variant("logarithm", "JAX takes exp2", "jnp.exp", on_input(lambda x: x * math.log(2)))
            yield Variant("constant", "JAX takes expm1", "jnp.exp", on_result(lambda y: y - 1))
            yield Variant(
                "scale", "JAX halves the exponent, PyTorch does not", "jnp.exp(x)", on_input(lambda x: x / 2)
            )


def products(operation: Operation) -> Iterator[Variant]:
    """Matrix products and products of two tensors."""
    name = operation.name
    if name in ("matmul", "bmm", "einsum", "mm"):
        result = operation.function(*operation.args, **operation.kwargs)
        if result.ndim > 1 and result.shape[-1] == result.shape[-2]:
            what = "the product is transposed in JAX, such as k · q for q · k"
            yield Variant("axes", what, "PyTorch's order", on_result(lambda y: y.mT))
        sizes = sizes_of(operation)
        for factor in [s**p for s in sizes for p in (-0.5, -1.0, 0.5)][:MOST_CONSTANTS]:
            what = f"JAX multiplies a product by {number(factor, sizes)}, PyTorch does not"
            yield Variant("scale", what, "leaving the factor out", on_result(lambda y, f=factor: f * y))
    elif name in ("mul", "imul", "multiply") and _two_tensors(operation):
        for place, term in enumerate(("first", "second")):
            what = f"JAX leaves out the {term} factor of a product"
            keep = instead(lambda *args, p=1 - place, **__: args[p] + 0 * args[1 - p])
            yield Variant("factor missing", what, "PyTorch's product", keep)
            plus = on_input(lambda x: 1 + x, place)
            yield Variant("norm scale", f"JAX multiplies by 1 + the {term} factor", "PyTorch's product", plus)
            minus = on_input(lambda x: x - 1, place)
            what = f"JAX multiplies by the {term} factor without the 1 that PyTorch adds"
            yield Variant("norm scale", what, "1 + x", minus)
    elif name in ("div", "true_divide", "divide") and _two_tensors(operation):
        what = "JAX multiplies where PyTorch divides"
        yield Variant("factor missing", what, "a division", instead(lambda a, b, *_, **__: a * b))
        yield Variant(
            "factor missing", "JAX does not divide", "a division", instead(lambda a, b, *_, **__: a + 0 * b)
        )


def reductions(operation: Operation) -> Iterator[Variant]:
    """Mean, maximum, sum, or one place of an axis; and over which axes."""
    name = operation.name
    if name not in ("mean", "max", "amax", "sum", "min", "amin") or not isinstance(
        operation.args[0], torch.Tensor
    ):
        return
    x = operation.args[0]
    dims = operation.argument(1, "dim")
    if dims is None or isinstance(dims, torch.Tensor):
        dims = tuple(range(x.ndim))
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    keep = bool(operation.argument(2, "keepdim", False))
    named: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "mean": lambda x: x.mean(dims, keepdim=keep),
        "maximum": lambda x: x.amax(dims, keepdim=keep),
        "sum": lambda x: x.sum(dims, keepdim=keep),
        "first place": lambda x: _place(x, dims, 0, keep),
        "last place": lambda x: _place(x, dims, -1, keep),
        "minimum": lambda x: x.amin(dims, keepdim=keep),
    }
    own = {"mean": "mean", "max": "maximum", "amax": "maximum", "sum": "sum"}.get(name, "minimum")
    for text, compute in named.items():
        if text != own:
            what = f"JAX takes the {text} over an axis, PyTorch the {own}"
            change = on_result(lambda y: y) if text == own else _reduced(name, compute)
            yield Variant("kind of pooling", what, f"the {own}", change)
    for count in dict.fromkeys(x.shape[d] for d in dims):
        if name == "mean" and count > 1:
            what = "the mean is divided by n - 1 in JAX"
            yield Variant("variance", what, "n", on_result(lambda y, n=count: y * n / (n - 1)))
    if len(dims) == 1 and isinstance(dims[0], int):
        for other in range(x.ndim):
            if other != dims[0] % x.ndim:
                what = f"JAX takes the {own} over axis {other}, PyTorch over axis {dims[0] % x.ndim}"
                yield Variant("reduced axis", what, f"axis={dims[0]}", with_argument(1, "dim", other))
    for axis in dims if len(dims) < x.ndim else ():
        if x.shape[axis] > 2:
            rest = on_input(lambda x, a=axis: x.narrow(a, 1, x.shape[a] - 1))
            what = f"JAX leaves out the first place of the {own}"
            yield Variant("token", what, f"the {own} over all places", rest)


def _reduced(name: str, compute: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if name in ("max", "min"):
        return lambda function, x, *args, **kwargs: (
            type(function(x, *args, **kwargs))((compute(x), function(x, *args, **kwargs)[1]))
            if args or kwargs
            else compute(x)
        )
    return lambda _function, x, *_, **__: compute(x)


def _place(x: torch.Tensor, dims: tuple[int, ...], index: int, keep: bool) -> torch.Tensor:
    for axis in sorted((d % x.ndim for d in dims), reverse=True):
        x = x.narrow(axis, index % x.shape[axis], 1)
        x = x if keep else x.squeeze(axis)
    return x


def _two_tensors(operation: Operation) -> bool:
    return len(operation.args) > 1 and all(isinstance(arg, torch.Tensor) for arg in operation.args[:2])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
