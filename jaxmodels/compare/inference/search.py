"""Which layer of one side is which of the other, found by computing.

PyTorch runs once. Each assignment gives its weights to the JAX model, which runs and is compared call by call: the
more of PyTorch's arrays it reproduces, the better. An assignment is changed where the first call differs.
"""

from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from jaxmodels.compare.calls import PairError
from jaxmodels.compare.inference.assignment import Assignment, Proposals
from jaxmodels.compare.inference.candidates import candidate_axes
from jaxmodels.compare.inference.proofs import Proofs
from jaxmodels.compare.inference.sides import ALIKE, PROVEN, FlaxSide, Index, Run, TorchSide, distance
from jaxmodels.compare.layers import Event
from jaxmodels.compare.outputs import matched
from jaxmodels.convert.core import fit
from jaxmodels.convert.table import Added, Parameter


MOST_RUNS = 600
MOST_ROLES = 4  # layers of one input whose exchanges are all tried


class Trial(NamedTuple):
    """A run of the JAX model with PyTorch's weights.

    Attributes:
      score: how many of PyTorch's arrays it reproduces; twice as much for those that it reproduces to all digits.
      error: of the outputs.
    """

    score: int
    error: float
    run: Run


class Search:
    """Looks for the assignment that reproduces most of what PyTorch computes.

    Attributes:
      best, trial: the assignment, and what it gives.
      expected: what PyTorch computes.
      proposals: where assignments come from.
    """

    def __init__(self, flax: FlaxSide, theirs: TorchSide) -> None:
        self.flax, self.torch = flax, theirs
        values = flax.randomise(0)
        run = flax.run()
        self.values = theirs.randomise(1)
        self.expected = theirs.run()
        self.known = Index(self.expected)
        self.runs = 0
        proofs = Proofs(flax, theirs, values, run)
        self.proposals = Proposals(flax, theirs, proofs, run.events, self.expected.events)
        self.best = self.proposals.first()
        self.trial = self.attempt(self.best)

    def solve(self) -> None:
        """Searches until the outputs agree or no change helps."""
        while self.trial.error > PROVEN and self.runs < MOST_RUNS:
            if not any(self._improves(change) for change in self._changes()):
                return

    def table(self) -> list[Parameter | Added]:
        """The parameters of the best assignment."""
        return self.proposals.table(self.best)

    def attempt(self, assignment: Assignment) -> Trial:
        """Runs the JAX model with the weights that an assignment gives it."""
        self.runs += 1
        table = self.proposals.table(assignment)
        self.flax.set(fit(self.flax.model, table, {e.theirs: self.values[e.theirs] for e in table}))
        run = self.flax.run()
        index = Index(run)
        errors = output_errors(self.expected, run)
        for event in self.expected.events:
            for array in event.arrays:
                matches = index.matches(array)
                errors += [min(match.error for match in matches)] if matches else []
        score = sum(1 + (error <= PROVEN) for error in errors if error <= ALIKE)
        return Trial(score, output_error(self.expected, run), run)

    def _improves(self, change: Assignment) -> bool:
        if self.runs >= MOST_RUNS:
            return False
        trial = self.attempt(change)
        if trial.score <= self.trial.score:
            return False
        self.best, self.trial = change, trial
        return True

    def _changes(self) -> Iterator[Assignment]:
        """Assignments near the best one, likely improvements first."""
        yield from self._by_inputs()
        yield from self._by_roles()
        yield from self._composites_exchanged()
        yield from self._repacked()
        yield from self._other_singles()
        yield from self._with_others()
        yield from self._composites_permuted()

    def _by_inputs(self) -> Iterator[Assignment]:
        """A layer that gets what another PyTorch layer than its own gets is given that one's weights."""
        inputs = first_events(self.trial.run.events, "input")
        for ours in self._layers():
            matching = {
                match.event.path
                for array in (inputs[ours].arrays if ours in inputs else ())
                for match in self.known.matches(array)
                if match.event
            }
            if self.best.layers[ours] in matching:
                continue
            for theirs in self.proposals.compatible[ours]:
                if theirs in matching and (change := self._exchanged(ours, theirs)):
                    yield change

    def _layers(self) -> list[str]:
        return sorted(self.best.layers, key=self.proposals.our_order.__getitem__)

    def _exchanged(self, ours: str, theirs: str) -> Assignment | None:
        """Gives `theirs` to `ours`, and what that had to the layer that had `theirs`."""
        layers = dict(self.best.layers)
        holder = next((path for path, there in layers.items() if there == theirs), None)
        before, layers[ours] = layers[ours], theirs
        if holder is None:
            return self.proposals.with_the_rest(layers)
        if before not in self.proposals.compatible[holder]:
            return None
        layers[holder] = before
        return self.best._replace(layers=layers)

    def _by_roles(self) -> Iterator[Assignment]:
        """Layers that get the same input, such as queries, keys and values, exchange their weights."""
        for together in self._roles():
            current = [self.best.layers[path] for path in together]
            for order in permutations(current):
                fits = (b in self.proposals.compatible[a] for a, b in zip(together, order, strict=True))
                if list(order) != current and all(fits):
                    layers = dict(self.best.layers) | dict(zip(together, order, strict=True))
                    yield self.best._replace(layers=layers)

    def _with_others(self) -> Iterator[Assignment]:
        """A layer without a counterpart takes that of another one."""
        for ours, compatible in self.proposals.compatible.items():
            if ours in self.best.layers:
                continue
            for theirs in compatible:
                layers = {path: there for path, there in self.best.layers.items() if there != theirs}
                yield self.proposals.with_the_rest(layers | {ours: theirs})

    def _roles(self) -> list[list[str]]:
        """Groups of JAX layers that get the same input and could have each other's weights, in order of time."""
        found: list[tuple[np.ndarray, list[str]]] = []
        inputs = first_events(self.trial.run.events, "input")
        compatible = self.proposals.compatible
        for ours in self._layers():
            if ours not in inputs or not inputs[ours].arrays:
                continue
            array = inputs[ours].arrays[0]
            for other, paths in found:
                alike = set(compatible[paths[0]]) & set(compatible[ours])
                if other.shape == array.shape and alike and np.array_equal(other, array):
                    paths.append(ours)
                    break
            else:
                found.append((array, [ours]))
        return [paths[:MOST_ROLES] for _, paths in found if len(paths) > 1]

    def _composites_exchanged(self) -> Iterator[Assignment]:
        """Two attention layers or cells exchange their weights, or one takes those of a module without a twin."""
        composite, possible = self.best.composite, self.proposals.composites
        for ours, theirs in composite.items():
            for there in possible[ours]:
                holder = next((path for path, other in composite.items() if other == there), None)
                if holder is None:
                    yield self.proposals.completed(self.best.layers, dict(composite) | {ours: there})
                elif ours < holder and theirs in possible[holder]:
                    yield self.best._replace(composite=dict(composite) | {ours: there, holder: theirs})

    def _composites_permuted(self) -> Iterator[Assignment]:
        """All orders at once of attention layers or cells that could have each other's weights.

        PyTorch runs the layers of an nn.LSTM as one, so that nothing shows until all of them are right.
        """
        together: dict[tuple[str, ...], list[str]] = {}
        for ours in self.best.composite:
            together.setdefault(tuple(self.proposals.composites[ours]), []).append(ours)
        groups = [paths[:MOST_ROLES] for paths in together.values() if len(paths) > 1]
        here = [path for paths in groups for path in paths]
        current = [[self.best.composite[path] for path in paths] for paths in groups]
        for orders in product(*map(permutations, current)):
            if list(map(list, orders)) != current:
                change = zip(here, [path for order in orders for path in order], strict=True)
                yield self.best._replace(composite=dict(self.best.composite) | dict(change))

    def _repacked(self) -> Iterator[Assignment]:
        """Other ways to pack: all weights of one kind alike, with the biases beside them; then each on its own."""
        packed = self.best.packed
        if not packed:
            return
        for index in range(1, max(len(self.proposals.options(one)) for one in packed)):
            usable = {one: index for one in packed if index < len(self.proposals.options(one))}
            yield self.best._replace(packed=dict(packed) | usable)
        for one in packed:
            for index in range(len(self.proposals.options(one))):
                yield self.best._replace(packed=dict(packed) | {one: index})

    def _other_singles(self) -> Iterator[Assignment]:
        """Other layouts of single variables, and exchanges between two of them."""
        single = dict(self.best.single)
        shapes, keys = self.proposals.our_shapes, self.proposals.their_shapes
        taken = {entry.theirs for entry in self.table()}
        for path, (key, current) in single.items():
            for other in [key, *(key for key in keys if key not in taken)]:
                for axes in candidate_axes(keys[other], shapes[path]):
                    if (other, axes) != (key, current):
                        yield self.best._replace(single=single | {path: (other, axes)})
        for path, (key, _) in single.items():
            for other, (their_key, _) in single.items():
                mine = candidate_axes(keys[their_key], shapes[path])
                swapped = candidate_axes(keys[key], shapes[other])
                if path < other and mine and swapped:
                    change = {path: (their_key, mine[0]), other: (key, swapped[0])}
                    yield self.best._replace(single=single | change)


def output_errors(expected: Run, run: Run) -> list[float]:
    """The error of each output; none where the two sides return different names."""
    try:
        pairs = matched(run.outputs, expected.outputs)
    except PairError:
        return []
    return [distance(theirs, ours) for _, ours, theirs in pairs]


def output_error(expected: Run, run: Run) -> float:
    """The worst error of an output; infinite where the two sides return different names."""
    return max(output_errors(expected, run), default=float("inf"))


def first_events(events: Sequence[Event], kind: str) -> dict[str, Event]:
    """The first event of a kind of every module."""
    found: dict[str, Event] = {}
    for event in events:
        if event.kind == kind:
            found.setdefault(event.path, event)
    return found
