"""Which parameters of PyTorch could be exchanged without changing an output, so that no computing tells them apart.

Two layers whose outputs are added are one example. Random weights show it: the model runs with both exchanged.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from jaxmodels.compare.inference.sides import PROVEN, Run, TorchSide
from jaxmodels.compare.layers import Event
from jaxmodels.compare.noise import relative_error


def interchangeable(side: TorchSide, run: Run) -> dict[str, set[str]]:
    """Every parameter that could have the place of others, and these; `run` has the model's present weights."""
    found: dict[str, set[str]] = {}
    for pairs in _candidates(side, run.events):
        with side.exchanged(pairs):
            outputs = side.outputs()
        same = zip(outputs.values(), run.outputs.values(), strict=True)
        if all(relative_error(a, b) <= PROVEN for a, b in same):
            for a, b in pairs:
                found.setdefault(a, set()).add(b)
                found.setdefault(b, set()).add(a)
    return found


def _candidates(side: TorchSide, events: Sequence[Event]) -> Iterator[list[tuple[str, str]]]:
    """Sets of parameters to exchange: of modules side by side that get the same, and within the user's modules."""
    given = {event.path: event.arrays for event in reversed(events) if event.kind == "input"}
    below: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, own in side.groups.items():
        for name, shape in own.items():
            outer = path
            while outer:
                below.setdefault(outer, {})[f"{path[len(outer) :]}.{name}"] = shape
                outer = outer.rpartition(".")[0]
    siblings: dict[tuple[object, ...], list[str]] = {}
    for path, shapes in below.items():
        siblings.setdefault(
            (path.rpartition(".")[0], type(side.modules[path]).__name__, *shapes.items()), []
        ).append(path)
    for paths in siblings.values():
        for a, b in combinations(paths, 2):
            if _get_the_same(given.get(a), given.get(b)):
                yield [(a + name, b + name) for name in below[a]]
    for path, own in side.groups.items():
        if not type(side.modules[path]).__module__.startswith("torch.nn."):
            for a, b in combinations(own, 2):
                if own[a] == own[b]:
                    yield [(f"{path}.{a}".lstrip("."), f"{path}.{b}".lstrip("."))]


def _get_the_same(a: Sequence[np.ndarray] | None, b: Sequence[np.ndarray] | None) -> bool:
    """Whether two modules may get the same; nothing is known of one that is not called."""
    if a is None or b is None:
        return a is b
    return len(a) == len(b) and all(map(np.array_equal, a, b))
