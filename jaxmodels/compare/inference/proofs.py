"""Through which layout two layers compute the same: PyTorch's runs on what JAX's received, with JAX's weights."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
import torch

from jaxmodels.compare.inference.candidates import Axes, candidate_axes
from jaxmodels.compare.inference.names import similarity
from jaxmodels.compare.inference.sides import PROVEN, FlaxSide, Run, TorchSide, distance
from jaxmodels.compare.layers import Event
from jaxmodels.compare.torch_calls import arrays_of
from jaxmodels.convert.layout import Layout
from jaxmodels.convert.table import Parameter


MOST_TRIES = 400  # layouts of one pair of layers
# A layer with a small mistake, such as another epsilon, is recognised where all other layouts are this much worse.
NEAR, CLEARLY_WORSE = 0.1, 5.0


class Template(NamedTuple):
    """How the variables of a layer are the parameters of another one.

    Attributes:
      entries: (name here, name there, layout) of each.
      error: how far the two layers are apart with it.
      twin: the class of PyTorch's layer.
    """

    entries: tuple[tuple[str, str, Axes], ...]
    error: float
    twin: type

    def parameters(self, ours: str, theirs: str) -> tuple[Parameter, ...]:
        """The entries of a table, for layers at these paths."""
        return tuple(
            Parameter(
                _joined(theirs, there), _joined(ours, here), axes.axes, flip=axes.flip, sizes=axes.sizes
            )
            for here, there, axes in self.entries
        )


class Proofs:
    """Compares layers pair by pair. One run of the JAX model is enough for all of them."""

    def __init__(self, flax: FlaxSide, theirs: TorchSide, values: Mapping[str, np.ndarray], run: Run) -> None:
        self.flax, self.torch, self.values = flax, theirs, values
        self.calls: dict[str, list[Event]] = {}
        for event in run.events:
            self.calls.setdefault(event.path, []).append(event)
        self.known: dict[tuple[str, Any], Template | None] = {}

    def template(self, ours: str, theirs: str) -> Template | None:
        """The layouts that make layer `theirs` compute what layer `ours` does; None where there are none."""
        key = ours, self._kind(theirs)
        if key not in self.known:
            self.known[key] = self._find(ours, theirs)
        return self.known[key]

    def convention(self, path: str, key: str) -> Axes | None:
        """The layout that layers of the same two classes have been proven to have, with these names of variables."""
        here, _, own = path.rpartition(".")
        there, _, name = key.rpartition(".")
        module = self.torch.modules[there]
        for (other, _), template in self.known.items():
            if template is None or type(self.flax.modules.get(other)) is not type(
                self.flax.modules.get(here)
            ):
                continue
            if template.twin is type(module):
                for a, b, axes in template.entries:
                    same = len(self.flax.groups[other][a]) == len(self.flax.groups[here][own])
                    if (a, b) == (own, name) and same:
                        return axes
        return None

    def _kind(self, path: str) -> Any:
        """What two layers of PyTorch have in common that differ only in their weights."""
        module = self.torch.modules[path]
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple | None)}
        return type(module), repr(sorted(plain.items())), tuple(self.torch.groups[path].items())

    def _find(self, ours: str, theirs: str) -> Template | None:
        here, there = self.flax.groups[ours], self.torch.groups[theirs]
        events = self.calls.get(ours, [])
        if len(here) != len(there) or len(events) < 2:
            return None
        given = next(event for event in events if event.kind == "input")
        returned = next(event for event in events if event.kind == "output" and event.call == given.call)
        if not given.arrays or not returned.arrays:
            return None
        tried = []
        for entries in islice(_bijections(here, there), MOST_TRIES):
            template = Template(entries, 0.0, type(self.torch.modules[theirs]))
            tried.append(template._replace(error=self._error(template, ours, theirs, given, returned)))
            error = tried[-1].error
            if error <= PROVEN:
                return tried[-1]
        tried.sort(key=lambda one: one.error)
        if not tried or not tried[0].error <= NEAR:
            return None
        if len(tried) > 1 and tried[1].error < CLEARLY_WORSE * tried[0].error:
            return None
        return tried[0]

    def _error(self, template: Template, ours: str, theirs: str, given: Event, returned: Event) -> float:
        tensors = {}
        for entry in template.parameters(ours, ""):
            value = self.values[entry.ours]
            layout = Layout(entry, value.shape)
            tensors[entry.theirs] = torch.from_numpy(layout.entry_from({0: layout.part_from(value)}))
        module = self.torch.modules[theirs]
        best = float("inf")
        for arrays in _arrangements(given.arrays):
            arguments = [torch.from_numpy(np.array(array)) for array in arrays]
            try:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = arrays_of(torch.func.functional_call(module, tensors, tuple(arguments)))
            except Exception:  # the layer is of another kind
                continue
            if result:
                best = min(best, distance(result[0], returned.arrays[0]))
        return best


def _arrangements(arrays: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The inputs as they are, and with their channels on axis 1."""
    yield list(arrays)
    if any(array.ndim > 2 for array in arrays):
        yield [np.moveaxis(array, -1, 1) if array.ndim > 2 else array for array in arrays]
    if any(array.ndim > 1 for array in arrays):  # a single example, as under vmap
        yield [np.moveaxis(array, -1, 0) if array.ndim > 1 else array for array in arrays]


def _bijections(
    here: Mapping[str, tuple[int, ...]], there: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[tuple[str, str, Axes], ...]]:
    """All ways to pair the variables of two layers, each with all of its layouts; alike names first."""
    for names in sorted(_pairings(list(here), list(there), here, there), key=_unlike):
        layouts = [candidate_axes(there[b], here[a]) for a, b in names]
        for chosen in product(*layouts):
            yield tuple((a, b, axes) for (a, b), axes in zip(names, chosen, strict=True))


def _pairings(
    ours: list[str],
    theirs: list[str],
    here: Mapping[str, tuple[int, ...]],
    there: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[tuple[str, str], ...]]:
    if not ours:
        yield ()
        return
    for name in theirs:
        if candidate_axes(there[name], here[ours[0]]):
            for rest in _pairings(ours[1:], [other for other in theirs if other != name], here, there):
                yield ((ours[0], name), *rest)


def _unlike(names: tuple[tuple[str, str], ...]) -> float:
    return -sum(similarity(a, b) for a, b in names)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
