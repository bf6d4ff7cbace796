"""What of an assignment is proven, and what stays undecided.

Outputs that agree at two draws of random weights prove every parameter on which they depend. All others are proven
where their layer was seen to compute the same on an input that no rival gets. Otherwise names decide, or nobody does.
"""

from collections.abc import Iterable, Mapping

from jaxmodels.compare.inference.candidates import candidate_axes
from jaxmodels.compare.inference.maps import Undecided
from jaxmodels.compare.inference.names import resemblance
from jaxmodels.compare.inference.search import Search, first_events, output_error
from jaxmodels.compare.inference.sides import ALIKE, PROVEN, Run, distance
from jaxmodels.compare.inference.symmetry import interchangeable
from jaxmodels.convert.core import fit
from jaxmodels.convert.table import Added, Parameter


# The share of the largest gradient that counts as an effect on the outputs, and as a multiple of their error.
SMALLEST_EFFECT, EFFECT_OVER_ERROR = 1e-12, 1e3


SILENT = "no output depends on them, and their names do not tell which is which"
UNPROVEN = (
    "the outputs of the two models differ by {:.1e}, so that nothing behind the first difference is proven, and names "
    "do not tell which is which"
)
ALIKE_PARAMETERS = "exchanging them changes no output of PyTorch, and their names do not tell which is which"


def judge(search: Search) -> tuple[list[Parameter | Added], tuple[Undecided, ...]]:
    """The entries of the best assignment that are sure, and what is not."""
    everything = search.table()
    table = [entry for entry in everything if isinstance(entry, Parameter)]
    left_over = _left_over(search, everything)
    run = _run_elsewhere(search, everything) if search.trial.error <= PROVEN else None
    # What moves the outputs by no more than they differ anyway is not proven by them.
    silent = search.torch.without_effect(max(SMALLEST_EFFECT, EFFECT_OVER_ERROR * search.trial.error))
    judge = _Judge(search, silent if run else None)
    unsure = [entry for entry in table if not judge.is_sure(entry)]
    undecided = judge.undecided(unsure, SILENT if run else UNPROVEN.format(search.trial.error))
    if run:
        alike = _exchangeable(search, table, interchangeable(search.torch, run), judge)
        undecided += judge.undecided([entry for entry in alike if entry not in unsure], ALIKE_PARAMETERS)
        unsure += alike
    sure = [entry for entry in everything if entry not in unsure]
    keys = {entry.theirs for entry in sure if isinstance(entry, Parameter)}
    sure = [entry for entry in sure if not isinstance(entry, Added) or entry.to in keys]
    return sure, (*left_over, *undecided)


def _exchangeable(
    search: Search, table: list[Parameter], others: Mapping[str, set[str]], judge: "_Judge"
) -> list[Parameter]:
    """The entries of parameters that could be exchanged with others and whose names do not tell which is which."""
    ours: dict[str, list[str]] = {}
    for entry in table:
        ours.setdefault(entry.theirs, []).append(entry.ours)
    found = []
    for entry in table:
        rivals = {
            key for key in others.get(entry.theirs, ()) if key in ours and ours[key] != ours[entry.theirs]
        }
        if rivals and not judge.named(
            entry.ours, entry.theirs, [path for key in rivals for path in ours[key]], rivals
        ):
            found.append(entry)
    return found


def _left_over(search: Search, table: list[Parameter | Added]) -> list[Undecided]:
    """Parameters of either side that no entry mentions."""
    mentioned = {entry.theirs for entry in table}
    mentioned |= {entry.ours for entry in table if isinstance(entry, Parameter)}
    here = tuple(path for path in search.flax.variables if path not in mentioned)
    there = tuple(key for key in search.values if not mentioned & search.torch.aliases(key))
    return [Undecided(here, there, "the other side has no counterpart of this size")] if here or there else []


def _run_elsewhere(search: Search, table: list[Parameter | Added]) -> Run | None:
    """PyTorch's run at other random weights; None where the outputs differ there."""
    values = search.torch.randomise(2)
    search.flax.set(fit(search.flax.model, table, {e.theirs: values[e.theirs] for e in table}))
    expected = search.torch.run()
    return expected if output_error(expected, search.flax.run()) <= PROVEN else None


class _Judge:
    """Decides entry by entry; `silent` are the parameters without effect, or None where outputs prove nothing."""

    def __init__(self, search: Search, silent: set[str] | None) -> None:
        self.search, self.silent = search, silent
        self.shapes = search.proposals.our_shapes, search.proposals.their_shapes
        # Layers of which some parameter shows: a bias of keys, which no softmax passes on, belongs to its kernel.
        self.audible = {
            tuple(name.rpartition(".")[0] for name in (entry.ours, entry.theirs))
            for entry in search.table()
            if silent is not None and isinstance(entry, Parameter) and entry.theirs not in silent
        }
        kinds = ("input", "output")
        self.ours = {kind: first_events(search.trial.run.events, kind) for kind in kinds}
        self.theirs = {kind: first_events(search.expected.events, kind) for kind in kinds}

    def is_sure(self, entry: Parameter) -> bool:
        """Whether outputs, the layer's own output, or names settle an entry."""
        here, there = (name.rpartition(".")[0] for name in (entry.ours, entry.theirs))
        layered = self.search.best.layers.get(here) == there
        if self.silent is not None and (entry.theirs not in self.silent or (here, there) in self.audible):
            return True
        if layered:
            rivals = [b for b in self.search.proposals.compatible[here] if b != there]
            if self._agrees(here, there) and not any(self._gets_the_same(here, b) for b in rivals):
                return True
            others = [
                a for a, found in self.search.proposals.compatible.items() if there in found and a != here
            ]
            return (not rivals and not others) or self.named(here, there, others, rivals)
        composite = self._composite_of(entry)
        if composite is not None:
            return self._composite_is_only_or_named(*composite)
        return self._layout_is_settled(entry) and self._is_only_or_named(entry)

    def _composite_of(self, entry: Parameter) -> tuple[str, str] | None:
        """The attention or cell, here and there, to which an entry belongs."""
        for pair in self.search.best.composite.items():
            if entry in self.search.proposals.layers.entries(*pair):
                return pair
        return None

    def _composite_is_only_or_named(self, here: str, there: str) -> bool:
        """Whether no other module could have its weights, or its name says so; its layout is known by its kind."""
        possible = self.search.proposals.composites
        rivals = [path for path in possible[here] if path != there]
        others = [path for path, found in possible.items() if there in found and path != here]
        return (not rivals and not others) or self.named(here, there, others, rivals)

    def _agrees(self, here: str, there: str) -> bool:
        """Whether the two layers got the same and returned the same in the last run of the search."""
        for kind in ("input", "output"):
            ours, theirs = self.ours[kind].get(here), self.theirs[kind].get(there)
            if ours is None or theirs is None or not (ours.arrays and theirs.arrays):
                return False
            if distance(theirs.arrays[0], ours.arrays[0]) > ALIKE:
                return False
        return True

    def _gets_the_same(self, here: str, there: str) -> bool:
        ours, theirs = self.ours["input"].get(here), self.theirs["input"].get(there)
        if ours is None or theirs is None or not (ours.arrays and theirs.arrays):
            return True  # nothing is known of it
        return distance(theirs.arrays[0], ours.arrays[0]) <= ALIKE

    def _layout_is_settled(self, entry: Parameter) -> bool:
        if entry.part or entry.block:
            return False
        found = candidate_axes(self.shapes[1][entry.theirs], self.shapes[0][entry.ours])
        convention = self.search.proposals.proofs.convention(entry.ours, entry.theirs)
        return len(found) == 1 or (convention is not None and convention.axes == entry.axes)

    def _is_only_or_named(self, entry: Parameter) -> bool:
        mine, other = self.shapes[0][entry.ours], self.shapes[1][entry.theirs]
        single = self.search.best.single
        rivals = [
            key
            for key, _ in single.values()
            if key != entry.theirs and candidate_axes(self.shapes[1][key], mine)
        ]
        others = [
            path for path in single if path != entry.ours and candidate_axes(other, self.shapes[0][path])
        ]
        return (not rivals and not others) or self.named(entry.ours, entry.theirs, others, rivals)

    def named(self, here: str, there: str, others: Iterable[str], rivals: Iterable[str]) -> bool:
        """Whether two names resemble each other more than either does any other."""
        alike = resemblance(here, there)
        against = [resemblance(here, rival) for rival in rivals] + [
            resemblance(other, there) for other in others
        ]
        return alike > max(against, default=0.0)

    def undecided(self, entries: list[Parameter], reason: str) -> list[Undecided]:
        """What is not sure, those with the same candidates together."""
        found: dict[tuple[str, ...], list[str]] = {}
        for entry in entries:
            shape = self.shapes[0][entry.ours]
            whole = entry.part is None and entry.block is None
            keys = [
                other.theirs
                for other in entries
                if other.theirs == entry.theirs
                or (whole and candidate_axes(self.shapes[1][other.theirs], shape))
            ]
            found.setdefault(tuple(dict.fromkeys(keys)), []).append(entry.ours)
        return [Undecided(tuple(dict.fromkeys(ours)), keys, reason) for keys, ours in found.items()]
