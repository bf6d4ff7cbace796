"""Pooling, resizing, padding and pixel shuffling."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import Variant, cut_in_order, instead, on_input, with_argument


POOLS = {"avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3}
RESIZES = ("nearest", "nearest-exact", "bilinear", "linear", "bicubic", "area")
JAX_RESIZES = ("nearest", "linear", "cubic", "cubic-pytorch", "lanczos3")
# The method of `jax.image.resize` that computes what a mode of PyTorch does, without smoothing.
JAX_RESIZE_OF = {
    "nearest-exact": "nearest",
    "linear": "linear",
    "bilinear": "linear",
    "trilinear": "linear",
    "bicubic": "cubic-pytorch",
}


def pools(operation: Operation) -> Iterator[Variant]:
    """How padding takes part, and the mean in place of the maximum."""
    name = operation.name
    if name.startswith("adaptive_"):
        yield from _adaptive(operation)
    if name not in POOLS:
        return
    rank, mean = POOLS[name], name.startswith("avg")
    x = operation.args[0]
    kernel = _each(operation.argument(1, "kernel_size"), rank)
    stride = operation.argument(2, "stride")
    stride = kernel if stride is None or stride == () else _each(stride, rank)
    padding = _each(operation.argument(3, "padding", 0), rank)
    ceil = bool(operation.argument(4 if mean else 5, "ceil_mode", False))
    if mean:
        counted = operation.argument(5, "count_include_pad", True)
        what = f"average pooling {'leaves out' if counted else 'counts'} the zeros of the padding in JAX"
        change = with_argument(5, "count_include_pad", not counted)
        yield Variant("pooling padding", what, f"count_include_pad={counted}", change)
    for text, pads in _paddings(x.shape[-rank:], kernel, stride, padding, ceil).items():
        for fill, with_zeros in ((0.0, True), (float("-inf"), False)):
            what = f"JAX pads the pooling by {text}{', with zeros' if not mean and with_zeros else ''}"
            change = _pooled(rank, kernel, stride, pads, fill, mean=mean, counted=with_zeros)
            yield Variant("pooling padding", what, f"PyTorch's padding, {padding},", change)
    other = "maximum" if mean else "mean"
    change = _pooled(
        rank, kernel, stride, [(p, p) for p in padding], float("-inf") if mean else 0.0, mean=not mean
    )
    what = f"JAX pools by the {other}"
    yield Variant("kind of pooling", what, f"nnx.{'avg' if mean else 'max'}_pool", change)


def _adaptive(operation: Operation) -> Iterator[Variant]:
    rank = int(operation.name[-2])
    axes = tuple(range(-rank, 0))
    if operation.args[0].ndim <= rank:
        return
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "the maximum": lambda x: x.amax(axes, keepdim=True),
        "the mean": lambda x: x.mean(axes, keepdim=True),
        "the sum": lambda x: x.sum(axes, keepdim=True),
        "the first place": lambda x: x[(..., *[slice(1)] * rank)],
    }
    own = "the mean" if "avg" in operation.name else "the maximum"
    for text, way in ways.items():
        if text != own:
            yield Variant(
                "kind of pooling",
                f"JAX takes {text}, PyTorch {own}",
                own,
                instead(lambda x, *_, f=way, **__: f(x)),
            )


def _paddings(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool
) -> dict[str, list[tuple[int, int]]]:
    names = (
        '"SAME"',
        "its own numbers",
        "all of it at the end",
        "all of it at the beginning",
        "as in ceil mode",
    )
    ways: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for size, k, s, p in zip(shape, kernel, stride, padding, strict=True):
        whole = max((-(-size // s) - 1) * s + k - size, 0)
        missing = -(size + 2 * p - k) % s
        ways['"SAME"'].append((whole // 2, whole - whole // 2))
        ways["its own numbers"].append((p, p))
        ways["all of it at the end"].append((0, 2 * p))
        ways["all of it at the beginning"].append((2 * p, 0))
        ways["as in ceil mode"].append((p, p if ceil else p + missing))
    return ways


def _pooled(
    rank: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    fill: float,
    *,
    mean: bool,
    counted: bool = True,
) -> Callable[..., Any]:
    def pool(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        sides = [side for pair in reversed(list(pads)) for side in pair]
        if not mean:
            maximum = getattr(F, f"max_pool{rank}d")
            return maximum(F.pad(x, sides, value=fill), tuple(kernel), tuple(stride))
        average = getattr(F, f"avg_pool{rank}d")
        pooled = average(F.pad(x, sides), tuple(kernel), tuple(stride))
        if counted:
            return pooled
        return pooled / average(F.pad(torch.ones_like(x), sides), tuple(kernel), tuple(stride))

    return instead(pool)


def resizes(operation: Operation) -> Iterator[Variant]:
    """What PyTorch's interpolation may be replaced by, `jax.image.resize` above all."""
    if operation.name != "interpolate":
        return
    x = operation.args[0]
    own = operation.argument(3, "mode", "nearest")
    aligned = bool(operation.argument(4, "align_corners"))
    own_smooths = bool(operation.argument(6, "antialias", False))
    size = tuple(operation.function(*operation.args, **operation.kwargs).shape)
    spatial = size[2:]
    shrinks = any(a < b for a, b in zip(spatial, x.shape[2:], strict=True))
    for method in JAX_RESIZES:
        for antialias in (True, False) if method != "cubic-pytorch" else (False,):
            smooth = shrinks and antialias and method != "nearest"
            words = _resize_in_words(own, aligned, method, (smooth, shrinks and own_smooths))
            if words:
                change = instead(lambda x, *_, m=method, a=antialias, **__: _jax_resize(x, size, m, a))
                yield Variant("resize", *words, change)
    for mode in RESIZES:
        for other in (None, False, True):
            if other is not None and "linear" not in mode and mode != "bicubic":
                continue
            change = instead(
                lambda x, *_, m=mode, a=other, **__: F.interpolate(x, spatial, mode=m, align_corners=a)
            )
            corners = " with aligned corners"
            what = f"JAX resizes by {mode!r}{corners * bool(other)}, PyTorch by {own!r}{corners * aligned}"
            yield Variant("resize", what, "PyTorch's convention", change)


def _resize_in_words(
    own: str, aligned: bool, method: str, smooths: tuple[bool, bool]
) -> tuple[str, str] | None:
    """How a call of `jax.image.resize` differs from PyTorch's, and which call does not; None for that call.

    Args:
      own: PyTorch's mode.
      aligned: whether PyTorch aligns the corners, which JAX cannot.
      method: JAX's.
      smooths: whether JAX smooths before it shrinks, and whether PyTorch does.
    """
    smooth, own_smooths = smooths
    right = "cubic" if own == "bicubic" and own_smooths else JAX_RESIZE_OF.get(own)
    differences = []
    if method == "cubic" and right == "cubic-pytorch":
        differences.append("jax.image.resize's 'cubic' has a = -0.5, PyTorch's 'bicubic' a = -0.75")
    elif method == own == "nearest":
        differences.append("jax.image.resize's 'nearest' is PyTorch's 'nearest-exact', not its 'nearest'")
    elif method != right:
        differences.append(f"jax.image.resize with {method!r} is not PyTorch's {own!r}")
    if aligned:
        differences.append("PyTorch aligns the corners, jax.image.resize does not")
    if smooth and not own_smooths:
        differences.append(f"jax.image.resize smooths before it shrinks ({method})")
    elif own_smooths and not smooth:
        differences.append("PyTorch smooths before it shrinks, jax.image.resize does not here")
    if not differences:
        return None
    if own == "nearest":
        cure = "indexing each axis with jnp.arange(new) * old // new"
    elif aligned or right is None:
        cure = "PyTorch's interpolation written out"
    elif method == right:
        cure = f"antialias={own_smooths}"
    else:
        cure = f"method={right!r} with antialias={own_smooths}"
    return ", and ".join(differences), cure


def _jax_resize(x: torch.Tensor, size: tuple[int, ...], method: str, antialias: bool) -> torch.Tensor:
    import jax  # missing where captures are judged without it: then these variants fail, and do not hold

    resized = jax.image.resize(x.detach().numpy(), size, method, antialias=antialias)
    return torch.from_numpy(np.array(resized))


def pads(operation: Operation) -> Iterator[Variant]:
    """F.pad with other values, or at the other side."""
    if operation.name != "pad":
        return
    sides = list(operation.argument(1, "pad"))
    own = operation.argument(2, "mode", "constant")
    for mode in ("constant", "reflect", "replicate", "circular"):
        if mode != own:
            what = f"JAX pads with {mode!r}, PyTorch with {own!r}"
            yield Variant("padding mode", what, f"mode={own!r}", with_argument(2, "mode", mode))
    swapped = [sides[i ^ 1] for i in range(len(sides))]
    if swapped != sides:
        what = "JAX pads at the other end than PyTorch"
        yield Variant("padding", what, "exchanging the two numbers", with_argument(1, "pad", swapped))
    other_axis = sides[2:] + sides[:2]
    if len(sides) == 4 and other_axis != sides:
        what = "JAX pads the axes in the other order; F.pad begins with the last"
        yield Variant("padding", what, "exchanging the axes", with_argument(1, "pad", other_axis))


def pixel_shuffles(operation: Operation) -> Iterator[Variant]:
    """The order in which channels become pixels."""
    if operation.name not in ("pixel_shuffle", "pixel_unshuffle"):
        return
    x, factor = (
        operation.args[0],
        operation.argument(1, "upscale_factor") or operation.argument(1, "downscale_factor"),
    )
    what = "JAX takes the channels of the pixel shuffle as {}, PyTorch as (channel, row, column)"
    names = ("channel", "row", "column")
    for order in ((1, 2, 0), (0, 2, 1), (2, 1, 0), (1, 0, 2), (2, 0, 1)):
        text = what.format(f"({', '.join(names[i] for i in order)})")
        if operation.name == "pixel_shuffle":
            factors = (x.shape[1] // factor**2, factor, factor)
            change = on_input(lambda x, f=factors, o=order: cut_in_order(x, 1, f, o))
        else:
            change = _reordered((x.shape[1], factor, factor), order)

        yield Variant("pixel order", text, "PyTorch's order", change)


def patches(operation: Operation) -> Iterator[Variant]:
    """The order in which `F.unfold` writes the channels, rows and columns of a patch into one axis."""
    if operation.function is not F.unfold:  # Tensor.unfold takes windows of one axis
        return
    kernel = _each(operation.argument(1, "kernel_size"), 2)
    factors = (operation.args[0].shape[1], *kernel)
    names = ("channel", "row", "column")
    for order in ((1, 2, 0), (0, 2, 1), (2, 1, 0)):
        text = f"({', '.join(names[i] for i in order)})"
        what = f"JAX flattens a patch as {text}, PyTorch as (channel, row, column)"
        yield Variant("patch order", what, "PyTorch's order", _reordered(factors, order))


def _reordered(factors: Sequence[int], order: Sequence[int]) -> Callable[..., Any]:
    """The operation, and axis 1 of its result, which holds `factors`, with these in another order."""

    def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        y = function(*args, **kwargs)
        parts = y.unflatten(1, tuple(factors))
        rest = range(1 + len(factors), parts.ndim)
        return parts.permute(0, *(1 + i for i in order), *rest).reshape(y.shape)

    return change


def _each(value: Any, rank: int) -> tuple[int, ...]:
    value = tuple(value) if isinstance(value, tuple | list) else (value,)
    return value * rank if len(value) == 1 else value
