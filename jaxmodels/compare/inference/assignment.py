"""Which parameter each variable gets: whole layers, weights that one side has in one piece, and single variables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxmodels.compare.composites import Composites
from jaxmodels.compare.inference.candidates import Axes, candidate_axes
from jaxmodels.compare.inference.names import resemblance
from jaxmodels.compare.inference.packing import Packed, Shapes, options, packed_layers
from jaxmodels.compare.inference.proofs import Proofs
from jaxmodels.compare.inference.sides import FlaxSide, TorchSide
from jaxmodels.compare.layers import Event
from jaxmodels.compare.recurrent import TorchCell, cell_place
from jaxmodels.convert.layout import Layout
from jaxmodels.convert.table import Added, Entry, Parameter


class Assignment(NamedTuple):
    """Which parameter each variable gets.

    Attributes:
      layers: path of a JAX layer -> path of its PyTorch layer.
      composite: the same for attention and recurrent cells, which hold their weights in another division.
      packed: weights that one side has in one piece -> which of their options.
      single: path of any other variable -> its key and layout.
    """

    layers: Mapping[str, str]
    composite: Mapping[str, str]
    packed: Mapping[tuple[Packed, ...], int]
    single: Mapping[str, tuple[str, Axes]]


class Proposals:
    """Makes assignments from names, shapes, order of execution, and from the layers that compute the same.

    Attributes:
      compatible: path of a JAX layer -> the PyTorch layers that compute the same, with the right weights.
      our_order, their_order: when each module is first called.
    """

    def __init__(
        self,
        flax: FlaxSide,
        theirs: TorchSide,
        proofs: Proofs,
        ours: Sequence[Event],
        events: Sequence[Event],
    ) -> None:
        self.flax, self.torch, self.proofs = flax, theirs, proofs
        self.our_order, self.their_order = _ranks(flax.groups, ours), _ranks(theirs.groups, events)
        self.our_shapes = {path: flax.shape_of(path) for path in flax.variables}
        self.their_shapes = {
            f"{path}.{own}".lstrip("."): shape
            for path, group in theirs.groups.items()
            for own, shape in group.items()
        }
        self.layers = Composites(flax.model, theirs.modules)
        self.composites = self._composites(ours)
        self.compatible = {
            here: [there for there in theirs.groups if proofs.template(here, there) is not None]
            for here in flax.groups
            if not any(f"{here}.".startswith(f"{path}.") for path in self.composites)
        }
        self._options: dict[tuple[Packed, ...], list[tuple[Parameter, ...]]] = {}

    def first(self) -> Assignment:
        """Alike names, then the same place in the order of execution."""
        kinds: dict[tuple[str, ...], list[str]] = {}
        for ours in sorted(self.compatible, key=self.our_order.__getitem__):
            kinds.setdefault(tuple(self.compatible[ours]), []).append(ours)
        wishes = []
        for possible, layers in kinds.items():
            there = sorted(possible, key=self.their_order.__getitem__)
            # Where one side has more of them, the place in the whole model tells more than that among them.
            same = len(layers) == len(there)
            here_at = dict(zip(layers, range(len(layers)), strict=True)) if same else _shares(self.our_order)
            there_at = dict(zip(there, range(len(there)), strict=True)) if same else _shares(self.their_order)
            for i, a in enumerate(layers):
                wishes += [(-resemblance(a, b), abs(here_at[a] - there_at[b]), i, a, b) for b in there]
        layers: dict[str, str] = {}
        for _, _, _, ours, theirs in sorted(wishes):
            if ours not in layers and theirs not in layers.values():
                layers[ours] = theirs
        return self.with_the_rest(layers)

    def with_the_rest(self, layers: Mapping[str, str]) -> Assignment:
        """An assignment of these layers and of all other variables."""
        composite: dict[str, str] = {}
        for ours, possible in self.composites.items():
            free = [path for path in possible if path not in composite.values()]
            if free:
                composite[ours] = max(free, key=lambda path: resemblance(ours, path))
        return self.completed(layers, composite)

    def completed(self, layers: Mapping[str, str], composite: Mapping[str, str]) -> Assignment:
        """An assignment of these layers and composite ones, and of all other variables."""
        entries = [entry for pair in composite.items() for entry in self.layers.entries(*pair)]
        taken = {entry.ours for entry in entries if isinstance(entry, Parameter)} | {
            e.theirs for e in entries
        }
        ours = self._outside(self.our_shapes, set(layers), self.our_order)
        theirs = self._outside(self.their_shapes, set(layers.values()), self.their_order)
        ours = {path: shape for path, shape in ours.items() if path not in taken}
        theirs = {key: shape for key, shape in theirs.items() if key not in taken}
        single = self._singles(ours, theirs)
        taken = {key for key, _ in single.values()}
        ours = {path: shape for path, shape in ours.items() if path not in single}
        theirs = {key: shape for key, shape in theirs.items() if key not in taken}
        packed = [one for one in packed_layers(ours, theirs) if self.options(one)]
        return Assignment(layers, composite, dict.fromkeys(packed, 0), single)

    def _composites(self, events: Sequence[Event]) -> dict[str, list[str]]:
        """Attention and recurrent cells, with the PyTorch ones of their kind whose shapes fit; in order of calls."""
        found: dict[str, list[str]] = {}
        times = _ranks(self.layers.ours, events)
        for ours in sorted(self.layers.ours, key=lambda path: (times[path], cell_place(path))):
            fitting = [path for path in self.layers.theirs if self._fits(self.layers.entries(ours, path))]
            if fitting:
                found[ours] = sorted(fitting, key=self._time)
        return found

    def _time(self, path: str) -> int:
        """When an attention, or the module of a cell, is first called in PyTorch."""
        one = self.layers.theirs[path]
        return self.their_order[one.path if isinstance(one, TorchCell) else path]

    def _fits(self, entries: list[Entry]) -> bool:
        parameters = [entry for entry in entries if isinstance(entry, Parameter)]
        return bool(parameters) and all(
            entry.ours in self.our_shapes
            and Layout(entry, self.our_shapes[entry.ours]).their_shape == self.their_shapes.get(entry.theirs)
            for entry in parameters
        )

    def _outside(self, shapes: Shapes, layers: set[str], order: Mapping[str, int]) -> Shapes:
        """What does not belong to these layers, in the order of the calls."""
        paths = [path for path in shapes if path.rpartition(".")[0] not in layers]
        return {path: shapes[path] for path in sorted(paths, key=lambda path: order[path.rpartition(".")[0]])}

    def _singles(self, ours: Shapes, theirs: Shapes) -> dict[str, tuple[str, Axes]]:
        """Variables with a parameter of the same size."""
        wishes = []
        for i, (path, shape) in enumerate(ours.items()):
            for j, (key, their_shape) in enumerate(theirs.items()):
                if found := candidate_axes(their_shape, shape):
                    wishes.append((-resemblance(path, key), abs(i - j), path, key, found))
        found: dict[str, tuple[str, Axes]] = {}
        taken: set[str] = set()
        for _, _, path, key, layouts in sorted(wishes, key=lambda wish: wish[:4]):
            if path not in found and key not in taken:
                found[path] = key, self.proofs.convention(path, key) or layouts[0]
                taken.add(key)
        return found

    def options(self, packed: tuple[Packed, ...]) -> list[tuple[Parameter, ...]]:
        """The ways to pack the weights of a layer."""
        if packed not in self._options:
            self._options[packed] = options(packed, self.our_shapes, self.their_shapes)
        return self._options[packed]

    def table(self, assignment: Assignment) -> list[Parameter | Added]:
        """The parameters of an assignment, in PyTorch's order."""
        entries: list[Entry] = []
        for pair in assignment.composite.items():
            entries += self.layers.entries(*pair)
        for ours, theirs in assignment.layers.items():
            template = self.proofs.template(ours, theirs)
            assert template is not None
            entries += template.parameters(ours, theirs)
        for packed, index in assignment.packed.items():
            entries += self.options(packed)[index]
        for path, (key, axes) in assignment.single.items():
            entries.append(Parameter(key, path, axes.axes, flip=axes.flip, sizes=axes.sizes))
        order = {key: i for i, key in enumerate(self.their_shapes)}
        found = [entry for entry in entries if isinstance(entry, Parameter | Added)]
        return sorted(found, key=lambda entry: order[entry.theirs])


def _shares(order: Mapping[str, int]) -> dict[str, float]:
    """Where each module comes in a model, from 0 to 1."""
    paths = sorted(order, key=order.__getitem__)
    return {path: i / max(len(paths) - 1, 1) for i, path in enumerate(paths)}


def _ranks(groups: Mapping[str, object], events: Sequence[Event]) -> dict[str, int]:
    """When each module is first called; one that is not comes where the module above it does."""
    times: dict[str, int] = {}
    for i, event in enumerate(events):
        times.setdefault(event.path, i)
    ranks = {}
    for path in groups:
        above = path
        while above not in times and above:
            above = above.rpartition(".")[0]
        ranks[path] = times.get(above, -1)
    return ranks
