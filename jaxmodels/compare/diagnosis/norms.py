"""Normalisation: layers, statistics, and the epsilon of hand-written ones."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import (
    EPSILONS,
    Variant,
    divisors,
    instead,
    on_result,
    with_argument,
)


LAYERS = {  # the position of epsilon, and of the weight
    "layer_norm": (4, 2),
    "rms_norm": (3, 2),
    "group_norm": (4, 2),
    "batch_norm": (7, 3),
    "instance_norm": (7, 3),
}
LARGEST_EPSILON = 1e-2  # a larger constant in a sum is no epsilon


def norm_layers(operation: Operation) -> Iterator[Variant]:
    """Epsilon, the kind of norm, and how its weights take part."""
    name = operation.name
    if name not in LAYERS:
        return
    place, weight_place = LAYERS[name]
    own = operation.argument(place, "eps", 1e-5)
    if own is None:
        own = float(torch.finfo(operation.args[0].dtype).eps)
    yield from _epsilons(own, lambda epsilon: with_argument(place, "eps", epsilon))
    weight = operation.argument(weight_place, "weight")
    if weight is not None:
        plus_one = with_argument(weight_place, "weight", 1 + weight)
        yield Variant("norm scale", "JAX scales by 1 + weight, PyTorch by the weight", "weight * x", plus_one)
        minus_one = with_argument(weight_place, "weight", weight - 1)
        yield Variant(
            "norm scale", "JAX scales by the weight, PyTorch by 1 + weight", "1 + weight", minus_one
        )
        none = with_argument(weight_place, "weight", None)
        yield Variant("norm scale", "JAX leaves out the norm's weight", "use_scale=True", none)
    if name != "rms_norm" and operation.argument(weight_place + 1, "bias") is not None:
        none = with_argument(weight_place + 1, "bias", None)
        yield Variant("bias missing", "JAX leaves out the norm's bias", "use_bias=True", none)
    yield Variant(
        "layer missing", f"JAX leaves out the {_words(name)}", "calling it", instead(lambda x, *_, **__: x)
    )
    if name in ("layer_norm", "rms_norm"):
        yield from _over_features(operation)
    elif name == "group_norm":
        yield from _groups(operation)
    else:

        def of_the_batch(function: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            weight, bias = kwargs.get("weight"), kwargs.get("bias")
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=kwargs.get("eps", 1e-5))

        what = "JAX normalises with the statistics of the batch, PyTorch with the running ones"
        yield Variant("batch statistics", what, "use_running_average=True", of_the_batch)


def _over_features(operation: Operation) -> Iterator[Variant]:
    """Layer norm and RMS norm, by formula, with other statistics."""
    shape = tuple(operation.argument(1, "normalized_shape"))
    axes = tuple(range(-len(shape), 0))
    weight = operation.argument(2, "weight")
    centred = operation.name == "layer_norm"
    bias = operation.argument(3, "bias") if centred else None
    epsilon = operation.argument(4 if centred else 3, "eps", 1e-5)
    epsilon = torch.finfo(operation.args[0].dtype).eps if epsilon is None else epsilon

    def norm(
        x: torch.Tensor, *, centre: bool, correction: int = 0, outside: bool = False, over: Any = axes
    ) -> Any:
        y = x - x.mean(over, keepdim=True) if centre else x
        count = y[0].numel() if over != axes else _product(shape)
        variance = y.square().sum(over, keepdim=True) / (count - correction)
        y = y / (variance.sqrt() + epsilon if outside else (variance + epsilon).sqrt())
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def change(**options: Any) -> Callable[..., Any]:
        return instead(lambda x, *_, **__: norm(x, **options))

    other, cure = ("an RMS norm", "nnx.LayerNorm") if centred else ("a layer norm", "nnx.RMSNorm")
    what = f"JAX computes {other}, PyTorch a {_words(operation.name)}"
    yield Variant("kind of norm", what, cure, change(centre=not centred))
    unbiased = change(centre=centred, correction=1)
    what = "the norm's variance is divided by n - 1 in JAX, by n in PyTorch"
    yield Variant("variance", what, "ddof=0", unbiased)
    what = "epsilon stands outside the norm's root in JAX, inside in PyTorch"
    yield Variant("epsilon", what, "sqrt(variance + epsilon)", change(centre=centred, outside=True))
    if operation.args[0].ndim > len(shape) + 1:
        all_but_batch = tuple(range(1, operation.args[0].ndim))
        what = "JAX normalises over all axes but the first, PyTorch over the last"
        yield Variant("norm axes", what, "reduction_axes=-1", change(centre=centred, over=all_but_batch))


def _groups(operation: Operation) -> Iterator[Variant]:
    channels, own = operation.args[0].shape[1], operation.argument(1, "num_groups")
    for groups in (1, *divisors(channels), channels):
        if groups != own:
            what = f"JAX normalises {groups} groups, PyTorch {own}"
            yield Variant("groups", what, f"num_groups={own}", with_argument(1, "num_groups", groups))

    def strided(function: Callable[..., Any], x: torch.Tensor, groups: int, *args: Any, **kwargs: Any) -> Any:
        order = torch.arange(channels).reshape(-1, own).T.reshape(-1)
        weights = {key: kwargs.pop(key, None) for key in ("weight", "bias")}
        y = function(x[:, order], groups, **kwargs)[:, torch.argsort(order)]
        shape = (-1, *[1] * (x.ndim - 2))
        y = y if weights["weight"] is None else y * weights["weight"].reshape(shape)
        return y if weights["bias"] is None else y + weights["bias"].reshape(shape)

    yield Variant(
        "groups", "JAX groups every n-th channel, PyTorch neighbours", "neighbouring channels", strided
    )


def statistics(operation: Operation) -> Iterator[Variant]:
    """Variances and standard deviations, and lengths to which vectors are normalised."""
    name = operation.name
    if name in ("std", "var", "std_mean", "var_mean"):
        whole = operation.args[0].numel()

        def corrected(power: float) -> Callable[..., Any]:
            def convert(result: Any) -> Any:
                first = result[0] if isinstance(result, tuple) else result
                n = whole / first.numel()
                scaled = first * ((n - 1) / n) ** (power if name.startswith("var") else power / 2)
                return (scaled, *result[1:]) if isinstance(result, tuple) else scaled

            return on_result(convert)

        function = "jnp.var" if name.startswith("var") else "jnp.std"
        what = f"{function} divides by n in JAX, by n - 1 in PyTorch"
        yield Variant("variance", what, "ddof=1", corrected(1))
        what = f"{function} divides by n - 1 in JAX, by n in PyTorch"
        yield Variant("variance", what, "ddof=0", corrected(-1))
    if name == "normalize":
        own = operation.argument(3, "eps", 1e-12)
        yield from _epsilons(own, lambda epsilon: with_argument(3, "eps", epsilon))
        dim = operation.argument(2, "dim", 1)
        for other in range(operation.args[0].ndim):
            if other != dim % operation.args[0].ndim:
                what = f"JAX normalises over axis {other}, PyTorch over axis {dim % operation.args[0].ndim}"
                yield Variant("norm axes", what, f"axis={dim}", with_argument(2, "dim", other))
        p = operation.argument(1, "p", 2.0)
        what = f"JAX divides by the {3 - p:g}-norm, PyTorch by the {p:g}-norm"
        yield Variant("kind of norm", what, f"ord={p:g}", with_argument(1, "p", 3 - p))
        for epsilon in EPSILONS[:-1]:
            inside = instead(
                lambda x, *_, e=epsilon, **__: x / (x.square().sum(dim, keepdim=True) + e).sqrt()
            )
            what = f"JAX adds {epsilon:g} inside the root of the length, PyTorch takes the larger of length and epsilon"
            yield Variant("epsilon", what, f"jnp.maximum(length, {own:g})", inside)
        mean = instead(lambda x, *_, **__: x / x.square().mean(dim, keepdim=True).sqrt())
        what = "JAX divides by the root mean square, PyTorch by the length"
        yield Variant("kind of norm", what, "jnp.linalg.norm", mean)
        yield Variant(
            "layer missing", "JAX leaves out the normalisation", "x / length", instead(lambda x, *_, **__: x)
        )


def written_epsilons(operation: Operation) -> Iterator[Variant]:
    """A small constant in a sum, or as the least value of a clamp."""
    if operation.name == "add" and len(operation.args) == 2:
        own = next((arg for arg in operation.args if isinstance(arg, float)), None)
        place = next((i for i, arg in enumerate(operation.args) if isinstance(arg, float)), 0)
    elif operation.name in ("clamp", "clamp_min", "clip"):
        own, place = operation.argument(1, "min"), 1
    else:
        return
    if isinstance(own, float) and 0 < own <= LARGEST_EPSILON:
        yield from _epsilons(own, lambda epsilon: with_argument(place, "min", epsilon))


def _epsilons(own: float, change: Callable[[float], Callable[..., Any]]) -> Iterator[Variant]:
    for epsilon in EPSILONS:
        if abs(epsilon - own) > 1e-3 * own:
            what = f"epsilon is {epsilon:g} in JAX and {own:g} in PyTorch"
            yield Variant("epsilon", what, f"epsilon={own:g}", change(epsilon))


def _words(name: str) -> str:
    return name.replace("_", " ").replace("rms", "RMS")


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
