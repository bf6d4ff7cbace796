"""How tensors are cut, merged, permuted, joined and shifted."""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any

import torch

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import (
    MOST_FACTORS,
    MOST_PARTS,
    Variant,
    cut_in_order,
    divisors,
    instead,
    on_input,
    on_result,
    orders,
    with_argument,
)


PARTS = ("first", "second", "third", "fourth")
MOST_AXES = 5  # of a tensor that is merged in any order


def cuts(operation: Operation) -> Iterator[Variant]:
    """Tensors cut into parts: which part is which, and whether parts are halves or neighbours."""
    if operation.name not in ("chunk", "split", "split_with_sizes", "unbind", "tensor_split"):
        return
    parts = operation.function(*operation.args, **operation.kwargs)
    count = len(parts)
    if count < 2:
        return
    if count <= MOST_PARTS and len({part.shape for part in parts}) == 1:
        for order in orders(count):
            what = f"JAX takes the parts of a cut tensor in the order {', '.join(PARTS[i] for i in order)}"
            change = on_result(lambda result, o=order: tuple(result[i] for i in o))
            yield Variant("order of parts", what, "PyTorch's order", change)
    if operation.name == "unbind" or len({part.shape for part in parts}) > 1:
        return
    axis = operation.argument(2, "dim", 0)
    size = operation.args[0].shape[axis]
    yield from _cut_orders(axis, size, count)


def _cut_orders(axis: int, size: int, count: int) -> Iterator[Variant]:
    neighbours = on_input(lambda x: cut_in_order(x, axis, (count, size // count), (1, 0)))
    if count == 2:
        what = "JAX pairs neighbours, (0, 1), (2, 3) …, PyTorch the two halves"
        yield Variant("pairing", what, f"pairing feature i with i + {size // 2}", neighbours)
    else:
        what = f"JAX gives neighbouring features to different parts, PyTorch {count} blocks"
        yield Variant("fused order", what, "PyTorch's order, (part, feature),", neighbours)
    for heads in divisors(size // count):
        factors = (count, heads, size // count // heads)
        what = f"JAX cuts the features as (head, {count}, dim) with {heads} heads, PyTorch as ({count}, head, dim)"
        change = on_input(lambda x, f=factors: cut_in_order(x, axis, f, (1, 0, 2)))
        yield Variant("fused order", what, f"cutting into {count} first", change)


def halves(operation: Operation) -> Iterator[Variant]:
    """Slices of half an axis, and single places."""
    if operation.name != "getitem":
        return
    x, index = operation.args[0], operation.args[1]
    index = index if isinstance(index, tuple) else (index,)
    if (index and isinstance(index[-1], slice) and len(index) in (x.ndim, 2) and index[0] is Ellipsis) or len(
        index
    ) == x.ndim:
        yield from _half(x, index[-1], index[:-1])
    for place, one in enumerate(index):
        if isinstance(one, int) and Ellipsis not in index[:place] and x.shape[place] > 1:
            for other in dict.fromkeys((0, x.shape[place] - 1, one + 1, one - 1)):
                if other != one % x.shape[place]:
                    changed = (*index[:place], other, *index[place + 1 :])
                    what = f"JAX takes place {other} of axis {place}, PyTorch place {one}"
                    yield Variant("token", what, f"index {one}", with_argument(1, "index", changed))
            means = on_input(lambda x, p=place: x.mean(p, keepdim=True).expand_as(x))
            what = f"JAX takes the mean over axis {place}, PyTorch place {one}"
            yield Variant("token", what, f"index {one}", means)
            largest = on_input(lambda x, p=place: x.amax(p, keepdim=True).expand_as(x))
            what = f"JAX takes the maximum over axis {place}, PyTorch place {one}"
            yield Variant("token", what, f"index {one}", largest)


def _half(x: torch.Tensor, last: Any, before: tuple[Any, ...]) -> Iterator[Variant]:
    size = x.shape[-1]
    if not isinstance(last, slice):
        return
    begin, end, step = last.indices(size)
    if step == 1 and (end - begin) * 2 == size and begin in (0, size // 2):
        pairs = slice(0 if begin == 0 else 1, None, 2)
        what = "JAX pairs neighbours, (0, 1), (2, 3) …, PyTorch the two halves"
        cure = f"pairing feature i with i + {size // 2}"
        yield Variant("pairing", what, cure, with_argument(1, "index", (*before, pairs)))
        other = slice(size // 2, None) if begin == 0 else slice(0, size // 2)
        what = "JAX takes the other half of the features"
        yield Variant("order of parts", what, "PyTorch's order", with_argument(1, "index", (*before, other)))
    if step == 2 and begin in (0, 1):
        half = slice(0, size // 2) if begin == 0 else slice(size // 2, None)
        what = "JAX pairs the two halves, PyTorch neighbours, (0, 1), (2, 3) …"
        yield Variant(
            "pairing", what, "pairing feature 2 i with 2 i + 1", with_argument(1, "index", (*before, half))
        )
        other = slice(1 - begin, None, 2)
        what = "JAX takes the odd features where PyTorch takes the even ones"
        yield Variant("order of parts", what, "PyTorch's order", with_argument(1, "index", (*before, other)))


def reshapes(operation: Operation) -> Iterator[Variant]:
    """Axes merged or cut in another order; the shape stays."""
    if operation.name not in ("reshape", "view", "flatten", "unflatten"):
        return
    x = operation.args[0]
    shape = tuple(operation.function(*operation.args, **operation.kwargs).shape)
    kept = 0
    while kept < min(x.ndim, len(shape)) and x.shape[kept] == shape[kept]:
        kept += 1
    tail = 0
    while tail < min(x.ndim, len(shape)) - kept and x.shape[-1 - tail] == shape[-1 - tail]:
        tail += 1
    if x.ndim > len(shape):
        yield from _merges(x, shape) if x.ndim <= MOST_AXES else _merged_groups(x, shape)
    elif len(shape) > x.ndim:
        axis = kept
        factors = shape[axis : len(shape) - tail]
        if axis < x.ndim and _product(factors) == x.shape[axis] and len(factors) <= MOST_FACTORS:
            for order in orders(len(factors)):
                ordered = f"({', '.join(str(factors[i]) for i in order)})"
                own = f"({', '.join(map(str, factors))})"
                if ordered == own:  # two factors of one size
                    own = f"({', '.join(PARTS[: len(factors)])}), of the sizes {own}"
                    ordered = f"({', '.join(PARTS[i] for i in order)})"
                what = f"JAX cuts an axis of {x.shape[axis]} as {ordered}, PyTorch as {own}"
                change = on_input(lambda x, f=factors, o=order: cut_in_order(x, axis, f, o))
                yield Variant("fused order", what, f"cutting it as {own}", change)


def _merges(x: torch.Tensor, shape: Sequence[int]) -> Iterator[Variant]:
    own = " ".join(map(str, x.shape))
    for order in list(permutations(range(x.ndim)))[1:]:
        change = instead(lambda x, *_, o=order, **__: x.permute(o).reshape(shape))
        sizes = tuple(x.shape[i] for i in order)
        channels_last = order == (0, *range(2, x.ndim), 1)
        if channels_last:
            what = "JAX flattens with the channels last, PyTorch with the channels first"
            cure = "moving the channels to axis 1 before flattening"
        else:
            what = f"JAX merges the axes in the order {order} (sizes {sizes}), PyTorch as they are ({own})"
            cure = "PyTorch's order of axes"
        yield Variant("flatten order", what, cure, change)


def _merged_groups(x: torch.Tensor, shape: Sequence[int]) -> Iterator[Variant]:
    """Axes that become one, in another order; a patch of an image has rows, columns and channels."""
    first = 0
    for size in shape:
        end = first + 1
        while end < x.ndim and _product(x.shape[first:end]) < size:
            end += 1
        group = tuple(x.shape[first:end])
        if _product(group) != size:  # the axes are not only merged
            return
        for order in orders(len(group)) if 1 < len(group) <= MOST_FACTORS else ():
            change = on_input(lambda x, f=first, o=order: _group_permuted(x, f, o))
            what = f"JAX merges the axes of sizes {group} in the order {', '.join(PARTS[i] for i in order)}"
            if len(group) > 2 and order == (len(group) - 1, *range(len(group) - 1)):
                what += ": what PyTorch has last, such as the channels of a patch, comes first"
            elif len(group) > 2 and order == (*range(1, len(group)), 0):
                what += ": what PyTorch has first, such as the channels of a patch, comes last"
            yield Variant("flatten order", what, "PyTorch's order of axes", change)
        first = end


def _group_permuted(x: torch.Tensor, first: int, order: Sequence[int]) -> torch.Tensor:
    axes = [*range(first), *(first + i for i in order), *range(first + len(order), x.ndim)]
    return x.permute(axes)


def permuted(operation: Operation) -> Iterator[Variant]:
    """Axes in another order, where the sizes allow it."""
    if operation.name not in ("transpose", "permute", "swapaxes", "movedim", "t", "adjoint"):
        return
    x = operation.args[0]
    shape = operation.function(*operation.args, **operation.kwargs).shape
    for order in permutations(range(x.ndim)):
        if tuple(x.shape[i] for i in order) == tuple(shape):
            what = f"JAX has the axes in the order {order}"
            yield Variant(
                "axes", what, "PyTorch's order of axes", instead(lambda x, *_, o=order, **__: x.permute(o))
            )
    raw = instead(lambda x, *_, **__: x.reshape(shape))
    yield Variant("axes", "JAX reshapes where PyTorch transposes", "a transpose", raw)


def joins(operation: Operation) -> Iterator[Variant]:
    """The order of what is joined, and neighbours in place of blocks."""
    if operation.name not in ("cat", "concat", "concatenate", "stack"):
        return
    parts = list(operation.args[0])
    axis = operation.argument(1, "dim", 0)
    if 1 < len(parts) <= MOST_PARTS:
        for order in orders(len(parts)):
            what = f"JAX joins in the order {', '.join(PARTS[i] for i in order)}"
            change = on_input(lambda parts, o=order: [parts[i] for i in o])
            yield Variant("joining order", what, "PyTorch's order", change)
    if operation.name != "stack" and len({part.shape for part in parts}) == 1:
        size = len(parts) * parts[0].shape[axis]
        mixed = on_result(lambda y: cut_in_order(y, axis, (size // len(parts), len(parts)), (1, 0)))
        yield Variant("pairing", "JAX interleaves what PyTorch joins", "jnp.concatenate", mixed)


def shifts(operation: Operation) -> Iterator[Variant]:
    """Rolled, flipped, repeated and summed-up tensors."""
    name = operation.name
    if name == "roll":
        by = operation.argument(1, "shifts")
        back = tuple(-one for one in by) if isinstance(by, tuple | list) else -by
        yield Variant("shift", "JAX rolls the other way", "the other sign", with_argument(1, "shifts", back))
        yield Variant("shift", "JAX does not roll", "jnp.roll", instead(lambda x, *_, **__: x))
    elif name == "flip":
        yield Variant("shift", "JAX does not flip", "jnp.flip", instead(lambda x, *_, **__: x))
    elif name == "repeat_interleave":
        count = operation.argument(1, "repeats")
        axis = operation.argument(2, "dim")
        if isinstance(count, int) and axis is not None:
            tiled = instead(lambda x, *_, **__: torch.cat([x] * count, axis))
            yield Variant("repeats", "JAX tiles what PyTorch repeats one by one", "jnp.repeat", tiled)
    elif name == "repeat" or name == "tile":
        x = operation.args[0]
        counts = operation.args[1] if isinstance(operation.args[1], tuple | list) else operation.args[1:]
        if len(counts) == x.ndim:
            single = instead(lambda x, *_, **__: _repeated(x, counts))
            yield Variant("repeats", "JAX repeats one by one what PyTorch tiles", "jnp.tile", single)
    elif name == "cumsum":
        x, axis = operation.args[0], operation.argument(1, "dim")
        yield Variant(
            "sum so far",
            "JAX's sum so far excludes the place itself",
            "jnp.cumsum",
            on_result(lambda y: y - x),
        )
        backwards = on_input(lambda x: x.flip(axis))
        turned: Callable[..., Any] = lambda f, *a, **k: backwards(f, *a, **k).flip(axis)  # noqa: E731
        yield Variant("sum so far", "JAX sums from the end", "jnp.cumsum", turned)
    elif name == "arange":
        for shift in (1, -1):
            what = f"JAX counts from {shift:+d}, PyTorch from 0"
            yield Variant("index offset", what, "PyTorch's first number", on_result(lambda y, s=shift: y + s))
        yield Variant("index order", "JAX counts backwards", "jnp.arange", on_result(lambda y: y.flip(0)))


def _repeated(x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    for axis, count in enumerate(counts):
        x = x.repeat_interleave(count, axis)
    return x


def _product(factors: Sequence[int]) -> int:
    result = 1
    for factor in factors:
        result *= factor
    return result
