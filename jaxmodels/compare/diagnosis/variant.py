"""A classic mistake as another way to compute one operation, and the parts such ways are made of."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import torch

from jaxmodels.compare.diagnosis.replay import Change, Operation


EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 0.0)
MOST_FACTORS = 4  # of an axis of which all orders are tried
MOST_PARTS = 4  # of a tensor of which all orders are tried


@dataclass(frozen=True)
class Variant:
    """What JAX may do instead of PyTorch's operation.

    Attributes:
      kind: the mistake in two or three words; one that stands at two operations is changed at both.
      what: the difference, as the first part of a sentence.
      cure: what to write in JAX, as the subject of "removes the difference".
      change: computes the operation in JAX's way.
    """

    kind: str
    what: str
    cure: str
    change: Change

    @property
    def sentence(self) -> str:
        return f"{self.what}; {self.cure} removes the difference"


def with_argument(position: int, name: str, value: Any) -> Change:
    """The operation with another value of an argument."""

    def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if len(args) > position:
            return function(*args[:position], value, *args[position + 1 :], **kwargs)
        return function(*args, **{**kwargs, name: value})

    return change


def in_sequence(*changes: Change) -> Change:
    """Several changes of the arguments of one operation."""

    def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for one in changes:
            function = partial(one, function)
        return function(*args, **kwargs)

    return change


def on_input(convert: Callable[[Any], Any], position: int = 0) -> Change:
    """The operation on a converted argument."""

    def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args[:position], convert(args[position]), *args[position + 1 :], **kwargs)

    return change


def on_result(convert: Callable[[Any], Any]) -> Change:
    """The operation, and its result converted."""
    return lambda function, *args, **kwargs: convert(function(*args, **kwargs))


def instead(compute: Callable[..., Any]) -> Change:
    """Another function of the same arguments."""
    return lambda _function, *args, **kwargs: compute(*args, **kwargs)


def number(value: float, sizes: Iterable[int] = ()) -> str:
    """A number in words: a root or a power of a size where it is one, otherwise its digits."""
    for power in (-0.5, 0.5, -1.0, -0.25):
        for size in (*sizes, *_bases(value, power)):
            if size > 1 and value > 0 and abs(value / size**power - 1) < 1e-6:
                return f"{size} ** {power:g}"
    return f"{value:.6g}"


def _bases(value: float, power: float) -> list[int]:
    """The integer of which a number is a root, where there is one."""
    if abs(power) != 0.5 or not 1e-3 < abs(value) < 1e3 or abs(value - round(value)) < 1e-6:
        return []
    return [round(value ** (1 / power))] if value > 0 else []


def sizes_of(operation: Operation) -> list[int]:
    """The sizes of the axes of all arguments, and the products of two of them, each once."""
    found: dict[int, None] = {}
    for tensor in operation.tensors:
        shape = [size for size in reversed(tensor.shape) if size > 1]
        found |= dict.fromkeys(shape)
        found |= dict.fromkeys(a * b for i, a in enumerate(shape) for b in shape[i + 1 :])
    return list(found)


def divisors(size: int) -> list[int]:
    """Those between 1 and `size`, both excluded."""
    return [one for one in range(2, size) if size % one == 0]


def orders(count: int) -> list[tuple[int, ...]]:
    """All orders of a few things except the one they are in."""
    return list(permutations(range(count)))[1:]


def cut_in_order(
    tensor: torch.Tensor, axis: int, factors: Sequence[int], order: Sequence[int]
) -> torch.Tensor:
    """An axis cut into `factors` as if they were stored in `order`, then merged again in the order given."""
    axis %= tensor.ndim
    before, after = tensor.shape[:axis], tensor.shape[axis + 1 :]
    parts = tensor.reshape(*before, *(factors[i] for i in order), *after)
    back = [list(order).index(i) for i in range(len(order))]
    axes = [*range(axis), *(axis + i for i in back), *range(axis + len(order), parts.ndim)]
    return parts.permute(axes).reshape(tensor.shape)
