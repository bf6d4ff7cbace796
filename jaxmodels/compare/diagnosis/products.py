"""Linear layers, embeddings and convolutions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import (
    Variant,
    cut_in_order,
    divisors,
    in_sequence,
    instead,
    on_input,
    on_result,
    with_argument,
)


CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
# Of F.pad, and in words.
MODES = {"circular": 'by "CIRCULAR"', "reflect": 'by "REFLECT"', "replicate": "with the values at its edges"}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


def linear_layers(operation: Operation) -> Iterator[Variant]:
    """The kernel's axes and the bias."""
    if operation.name != "linear":
        return
    weight = operation.argument(1, "weight")
    outputs, inputs = weight.shape
    if outputs == inputs:
        transposed = on_input(lambda w: w.mT, 1)
        what = "the kernel is transposed: PyTorch keeps (out, in), Flax (in, out)"
        yield Variant("kernel transposed", what, "kernel = weight.T", transposed)
    yield from _reordered_rows(operation, 1, outputs)
    yield from _bias(operation)


def _reordered_rows(operation: Operation, position: int, outputs: int) -> Iterator[Variant]:
    """Outputs of a fused layer in another order, such as (head, 3, dim) for (3, head, dim)."""
    for parts, name in ((2, "gate and value"), (3, "q, k and v"), (4, "the four gates")):
        if outputs % parts:
            continue
        for heads in divisors(outputs // parts):
            factors = (parts, heads, outputs // parts // heads)
            for order, text in (
                ((1, 0, 2), "(head, part, dim)"),
                ((1, 2, 0), "(head, dim, part)"),
                ((0, 2, 1), "(part, dim, head)"),
            ):
                change = on_result(lambda y, f=factors, o=order: cut_in_order(y, -1, f, o))
                what = f"JAX cuts the features into {name} as {text} with {heads} heads, PyTorch as (part, head, dim)"
                yield Variant("fused order", what, "PyTorch's order", change)


def _bias(operation: Operation) -> Iterator[Variant]:
    bias = operation.argument(2, "bias")
    if bias is not None:
        yield Variant(
            "bias missing", "JAX leaves out the bias", "use_bias=True", with_argument(2, "bias", None)
        )
        twice = with_argument(2, "bias", 2 * bias)
        yield Variant("bias twice", "JAX adds the bias twice", "adding it once", twice)


def embeddings(operation: Operation) -> Iterator[Variant]:
    """Scale of the vectors, and indices that are off by one."""
    if operation.name != "embedding":
        return
    indices, table = operation.args[0], operation.argument(1, "weight")
    width = table.shape[1]
    for factor, text in ((width**0.5, f"√{width}"), (width**-0.5, f"1 / √{width}")):
        what = f"JAX multiplies the embedding by {text}, PyTorch does not"
        yield Variant("embedding scale", what, "leaving the factor out", on_result(lambda y, f=factor: f * y))
    last = table.shape[0] - 1
    for shift in (1, -1, 2, -2):
        what = f"the indices of the embedding are {abs(shift)} {'larger' if shift > 0 else 'smaller'} in JAX"
        shifted = on_input(lambda i, s=shift: (i + s).clamp(0, last))
        yield Variant("index offset", what, "PyTorch's first index", shifted)
    if indices.ndim and indices.shape[-1] > 1:
        flipped = on_input(lambda i: i.flip(-1))
        yield Variant("index order", "the indices run backwards in JAX", "PyTorch's order", flipped)
    padding = operation.argument(2, "padding_idx")
    for index in dict.fromkeys([0, *([padding] if padding is not None and padding >= 0 else [])]):
        zeroed = instead(lambda i, w, *_, p=index, **__: F.embedding(i, w) * (i != p).unsqueeze(-1))
        what = f"JAX embeds index {index} as zeros, PyTorch with its row of the table"
        yield Variant("padding index", what, "PyTorch's row", zeroed)


def convolutions(operation: Operation) -> Iterator[Variant]:
    """Padding and its mode, the kernel's axes and direction, groups, bias."""
    rank = CONVOLUTIONS.get(operation.name)
    if rank is None:
        return
    x, weight = operation.args[0], operation.argument(1, "weight")
    stride, padding, dilation = (_each(operation.argument(i, name, d), rank) for i, name, d in _SPATIAL)
    kernel = weight.shape[2:]
    own = _as_pairs(padding, kernel, dilation)
    options = zip(x.shape[-rank:], kernel, stride, dilation, own, strict=True)
    for text, pads in _paddings(list(options)).items():
        if pads != own:
            change = _padded(operation.name, pads)
            what = f"JAX pads by {text}, PyTorch by {_in_words(own)}"
            yield Variant("padding", what, f"padding={_in_words(own)}", change)
    if any(map(any, own)):
        for mode, words in MODES.items():
            what = f"JAX pads the convolution {words}, PyTorch with zeros"
            change = _padded(operation.name, own, mode)
            yield Variant("padding mode", what, f"padding={_in_words(own)}", change)
    yield from _kernels(weight, rank)
    groups = operation.argument(6, "groups", 1)
    if groups > 1:
        sizes = (groups, weight.shape[0] // groups)
        what = "JAX orders the output channels as (channel, group), PyTorch as (group, channel)"
        order = on_result(lambda y: cut_in_order(y, 1, sizes, (1, 0)))
        yield Variant("groups", what, "PyTorch's order", order)
        into = on_input(lambda x: cut_in_order(x, 1, (groups, x.shape[1] // groups), (1, 0)))
        yield Variant(
            "groups", "JAX takes every n-th channel as a group, PyTorch neighbours", "neighbours", into
        )
    yield from _strides(operation, rank, stride, dilation)
    yield from _bias(operation)


_SPATIAL = ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))


def _paddings(axes: Sequence[tuple[int, int, int, int, tuple[int, int]]]) -> dict[str, list[tuple[int, int]]]:
    """Ways to pad that keep the size of the output; by name."""
    same, late, first, last, none = [], [], [], [], []
    for size, kernel, stride, dilation, (low, high) in axes:
        reach = (kernel - 1) * dilation
        whole = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
        same.append((whole // 2, whole - whole // 2))
        late.append((whole - whole // 2, whole // 2))
        first.append((low + high, 0))
        last.append((0, low + high))
        none.append((0, 0))
    return {
        '"SAME"': same,
        '"SAME_LOWER"': late,
        '"CAUSAL", at the beginning alone': first,
        "all of it at the end": last,
        '"VALID"': none,
    }


def _padded(name: str, pads: list[tuple[int, int]], mode: str = "constant") -> Callable[..., Any]:
    def change(function: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        x = F.pad(x, [side for pair in reversed(pads) for side in pair], mode)
        return with_argument(4, "padding", 0)(function, x, *args, **kwargs)

    return change


def _kernels(weight: torch.Tensor, rank: int) -> Iterator[Variant]:
    spatial = tuple(range(2, 2 + rank))
    if weight[0, 0].numel() > 1:
        what = "the kernel runs backwards along its spatial axes in JAX"
        yield Variant("kernel flipped", what, "reversing these axes", on_input(lambda w: w.flip(spatial), 1))
    if rank > 1 and weight.shape[-1] == weight.shape[-2] > 1:
        what = "the kernel's height and width are exchanged in JAX"
        cure = "transposing it to (h, w, in, out)"
        yield Variant("kernel transposed", what, cure, on_input(lambda w: w.mT, 1))
    if weight.shape[0] == weight.shape[1] > 1:
        what = "the kernel's input and output channels are exchanged in JAX"
        yield Variant(
            "kernel transposed",
            what,
            "transposing it to (…, in, out)",
            on_input(lambda w: w.transpose(0, 1), 1),
        )


def _strides(
    operation: Operation, rank: int, stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[Variant]:
    if any(one > 1 for one in dilation):
        what = f"JAX leaves out the dilation of {max(dilation)}"
        padding = _each(operation.argument(4, "padding", 0), rank)
        kernel = operation.argument(1, "weight").shape[2:]
        kept = [2 * p - d * (k - 1) + (k - 1) for p, d, k in zip(padding, dilation, kernel, strict=True)]
        pads = [(k // 2, k - k // 2) for k in kept]

        def change(function: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            x = F.pad(x, [side for pair in reversed(pads) for side in pair])
            undilated = in_sequence(with_argument(5, "dilation", 1), with_argument(4, "padding", 0))
            return undilated(function, x, *args, **kwargs)

        yield Variant("dilation", what, f"kernel_dilation={max(dilation)}", change)
    if any(one > 1 for one in stride):

        def strided_later(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            whole = with_argument(3, "stride", 1)(function, *args, **kwargs)
            offset = tuple(slice(s - 1, None, s) for s in stride)
            return whole[(slice(None), slice(None), *offset)]

        what = "JAX keeps the last place of each stride, PyTorch the first"
        yield Variant("padding", what, "PyTorch's padding", strided_later)


def transposed_convolutions(operation: Operation) -> Iterator[Variant]:
    """Direction of the kernel, and which part of the whole result is kept."""
    rank = TRANSPOSED.get(operation.name)
    if rank is None:
        return
    weight = operation.argument(1, "weight")
    spatial = tuple(range(2, 2 + rank))
    if weight[0, 0].numel() > 1:
        what = "the kernel runs backwards along its spatial axes in JAX"
        flip = on_input(lambda w: w.flip(spatial), 1)
        yield Variant("kernel flipped", what, "transpose_kernel=True, or a reversed kernel,", flip)
    if weight.shape[0] == weight.shape[1] > 1:
        both = on_input(lambda w: w.flip(spatial).transpose(0, 1), 1)
        swapped = on_input(lambda w: w.transpose(0, 1), 1)
        what = "the kernel's input and output channels are exchanged in JAX"
        yield Variant("kernel transposed", what, "transposing it", swapped)
        yield Variant("kernel transposed", f"{what}, and it runs backwards", "transpose_kernel=True", both)
    if rank > 1 and weight.shape[-1] == weight.shape[-2] > 1:
        what = "the kernel's height and width are exchanged in JAX"
        yield Variant("kernel transposed", what, "PyTorch's order of axes", on_input(lambda w: w.mT, 1))
    padding = _each(operation.argument(4, "padding", 0), rank)
    for shift in (-2, -1, 1, 2):

        def moved(function: Callable[..., Any], *args: Any, s: int = shift, **kwargs: Any) -> Any:
            return _cropped(function, args, kwargs, padding, s)

        later = "later" if shift > 0 else "earlier"
        what = f"JAX keeps a part of the transposed convolution that begins {abs(shift)} {later}"
        cure = "padding that crops as much at the beginning as PyTorch's"
        yield Variant("padding", what, cure, moved)
    yield from _bias(operation)


def _cropped(function: Callable[..., Any], args: Any, kwargs: Any, padding: Sequence[int], shift: int) -> Any:
    """The same size of output, begun elsewhere in the whole result; beyond its ends there is only the bias."""
    shape = function(*args, **kwargs).shape
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    uncropped = in_sequence(
        with_argument(2, "bias", None), with_argument(4, "padding", 0), with_argument(5, "output_padding", 0)
    )
    whole = uncropped(function, *args, **kwargs)
    sides = []
    for size, kept, begin in zip(
        reversed(whole.shape[2:]), reversed(shape[2:]), reversed(padding), strict=True
    ):
        sides += [-(begin + shift), kept + begin + shift - size]
    result = F.pad(whole, sides)
    return result if bias is None else result + bias.reshape(-1, *[1] * len(padding))


def _each(value: Any, rank: int) -> tuple[Any, ...]:
    if isinstance(value, str):
        return (value,) * rank
    return (
        tuple(value) * (rank if len(value) == 1 else 1)
        if isinstance(value, tuple | list)
        else (value,) * rank
    )


def _as_pairs(
    padding: Sequence[Any], kernel: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding as PyTorch has it, before and after each axis."""
    pairs = []
    for one, size, step in zip(padding, kernel, dilation, strict=True):
        whole = (size - 1) * step
        if one == "same":
            pairs.append((whole // 2, whole - whole // 2))
        else:
            pairs.append((0, 0) if one == "valid" else (one, one))
    return pairs


def _in_words(pads: Sequence[tuple[int, int]]) -> str:
    return f"({', '.join(f'({low}, {high})' for low, high in pads)}{',' if len(pads) == 1 else ''})"
