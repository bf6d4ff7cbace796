"""The vocabulary of the conversion tables.

Each model has one table, a sequence of the entries below in the order of the published package's
state_dict. Loading, exporting and the layer-by-layer comparison all read the same table, so no second copy
of a name can drift.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Parameter(NamedTuple):
    """One PyTorch entry that is one variable here, or a part of either.

    Attributes:
      theirs: key of the PyTorch state_dict.
      ours: dotted path of the variable in the Flax model.
      axes: einops pattern from PyTorch's axes to ours; read backwards for the export. The variable's shape supplies
        the sizes.
      expected: for a buffer that can be computed, its value; a loaded one must agree to within rounding.
      flip: how many of our first axes run backwards, or of our last ones as a negative number; of a transposed
        convolution's kernel these are the spatial ones.
      part: (index, count) where PyTorch packs `count` equal parts into one entry, and the variable is one of them.
        The axis of parts is called `part` in `axes`, as in "(h part d) i -> i h d"; without that name the parts
        follow one another along the first axis. The table lists all of them.
      block: (index, count) where the variable packs `count` entries of PyTorch. Their axis is called `block`, as in
        "o i -> block i o" for layers that `nnx.scan` has stacked. The table lists all of them.
      sizes: (name, size) of axes that the variable's shape leaves open.
    """

    theirs: str
    ours: str
    axes: str = "... -> ..."
    expected: Callable[[], np.ndarray] | None = None
    flip: int = 0
    part: tuple[int, int] | None = None
    block: tuple[int, int] | None = None
    sizes: tuple[tuple[str, int], ...] = ()


class Derived(NamedTuple):
    """A PyTorch entry that the architecture determines: checked on load, written on export, not stored.

    Attributes:
      theirs: key of the PyTorch state_dict.
      shape: its shape, which is compared before `expected` is computed.
      expected: its value.
      like: key of a parameter whose dtype it shares; None keeps the dtype of `expected`.
    """

    theirs: str
    shape: tuple[int, ...]
    expected: Callable[[], np.ndarray]
    like: str | None = None


class Tied(NamedTuple):
    """A PyTorch entry that repeats another one; equality is checked on load."""

    theirs: str
    to: str


class Added(NamedTuple):
    """A PyTorch entry that the model only ever adds to another one, such as the second bias of an LSTM.

    Here both are one variable, which gets their sum. The export writes zeros. `compare` moves its value into the
    other one before it begins and lets only that one learn, since an optimiser would otherwise move the sum twice.

    Attributes:
      theirs: key of the PyTorch state_dict.
      to: key of the Parameter to which it is added, of the same shape.
      blocks: (added, count) where only the first `added` of `count` equal blocks along the first axis are added. The
        others must be zero, because the Flax model has nothing like them, unless Parameters pair them as parts.
    """

    theirs: str
    to: str
    blocks: tuple[int, int] = (1, 1)


class Twin(NamedTuple):
    """Two modules that compute the same thing, for the layer-by-layer comparison.

    Attributes:
      theirs: path of the PyTorch module ("" is the model).
      ours: path of the Flax module.
      axes: einops pattern from the axes of PyTorch's inputs and outputs to ours; None where their shapes tell.
      output_axes: the same for outputs, where they differ from the inputs.
    """

    theirs: str
    ours: str
    axes: str | None = "... -> ..."
    output_axes: str | None = None


Entry = Parameter | Derived | Tied | Added | Twin


def linear(theirs: str, ours: str, *, bias: bool = True, axes: str = "... -> ...") -> Iterator[Entry]:
    """A Linear layer on both sides; `axes` are those of its activations."""
    yield Twin(theirs, ours, axes)
    yield Parameter(f"{theirs}.weight", f"{ours}.kernel", "o i -> i o")
    if bias:
        yield Parameter(f"{theirs}.bias", f"{ours}.bias")


def layer_norm(theirs: str, ours: str, *, axes: str = "... -> ...") -> Iterator[Entry]:
    """A LayerNorm with scale and bias on both sides."""
    yield Twin(theirs, ours, axes)
    yield Parameter(f"{theirs}.weight", f"{ours}.scale")
    yield Parameter(f"{theirs}.bias", f"{ours}.bias")


def embedding(theirs: str, ours: str) -> Iterator[Entry]:
    """An embedding table on both sides."""
    yield Twin(theirs, ours)
    yield Parameter(f"{theirs}.weight", f"{ours}.embedding")


def conv_2d(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Entry]:
    """A 2-D convolution, channels first there and last here."""
    yield Twin(theirs, ours, "b c h w -> b h w c")
    yield Parameter(f"{theirs}.weight", f"{ours}.kernel", "o i h w -> h w i o")
    if bias:
        yield Parameter(f"{theirs}.bias", f"{ours}.bias")


def conv_1x1(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Entry]:
    """A 1×1 convolution there, a Linear layer over channels-last images here."""
    yield Twin(theirs, ours, "b c h w -> b h w c")
    yield Parameter(f"{theirs}.weight", f"{ours}.kernel", "o i 1 1 -> i o")
    if bias:
        yield Parameter(f"{theirs}.bias", f"{ours}.bias")


def prefixed(entries: Iterator[Entry], theirs: str, ours: str) -> Iterator[Entry]:
    """The table of a model that is a part of another one, at the given paths (both end with a dot)."""
    for entry in entries:
        match entry:
            case Parameter():
                yield entry._replace(theirs=theirs + entry.theirs, ours=ours + entry.ours)
            case Derived():
                yield entry._replace(theirs=theirs + entry.theirs, like=entry.like and theirs + entry.like)
            case Tied() | Added():
                yield entry._replace(theirs=theirs + entry.theirs, to=theirs + entry.to)
            case Twin():
                yield entry._replace(
                    theirs=(theirs + entry.theirs).rstrip("."), ours=(ours + entry.ours).rstrip(".")
                )
