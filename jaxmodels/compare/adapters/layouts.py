"""Patterns of weights that several libraries share."""

from typing import Any

from jaxmodels.compare.adapters.protocol import Place


SPATIAL = {1: "w", 2: "h w", 3: "d h w"}


def is_conv(twin: Any) -> bool:
    """Whether a PyTorch module is a convolution, transposed or not."""
    return _is_a(twin, "_ConvNd")


def is_transposed(twin: Any) -> bool:
    """Whether a PyTorch module is a transposed convolution."""
    return _is_a(twin, "_ConvTransposeNd")


def conv_axes(theirs: str, rank: int, ours: str, *, channels_first: bool = False) -> str:
    """A convolution's pattern: channels and spatial axes there and here."""
    spatial = SPATIAL.get(rank - 2, "")
    return f"{theirs} {spatial} -> " + (f"{ours} {spatial}" if channels_first else f"{spatial} {ours}")


def dense_axes(place: Place, name: str) -> str:
    """The pattern of a (…inputs, …outputs) kernel, whose axes are merged in PyTorch.

    There the layer may be a convolution of one pixel, or Hugging Face's Conv1D, which keeps (in, out).
    """
    rank = len(place.shape)
    weight = getattr(place.twin, name, None)
    if rank < 2:
        return "... -> ..."
    if type(place.twin).__name__ == "Conv1D":
        return "... -> ..."
    ones = " 1" * (weight.ndim - 2) if weight is not None else ""
    if rank == 2:
        return f"o i{ones} -> i o"
    inputs = _count_of_inputs(place.shape, weight)
    names = [f"i{i}" if i < inputs else f"o{i}" for i in range(rank)]
    return f"({' '.join(names[inputs:])}) ({' '.join(names[:inputs])}){ones} -> {' '.join(names)}"


def merged_bias(rank: int) -> str:
    """A bias over several axes, such as heads and their features, of which PyTorch has one."""
    axes = " ".join(f"o{i}" for i in range(rank))
    return f"({axes}) -> {axes}" if rank > 1 else "... -> ..."


def _count_of_inputs(shape: tuple[int, ...], weight: Any) -> int:
    """How many of the first axes are inputs: those whose product is PyTorch's."""
    wanted = weight.shape[1] if weight is not None and weight.ndim > 1 else shape[0]
    size = 1
    for i, axis in enumerate(shape[:-1]):
        size *= axis
        if size == wanted:
            return i + 1
    return 1


def _is_a(twin: Any, name: str) -> bool:
    """Whether a PyTorch module is of a class, which is not imported: a JAX model may be captured without PyTorch."""
    return any(
        kind.__name__ == name and kind.__module__.startswith("torch.nn.") for kind in type(twin).__mro__
    )
