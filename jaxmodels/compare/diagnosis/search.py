"""Finds the mistakes that turn PyTorch's arrays into JAX's."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jaxmodels.compare.diagnosis.catalogue import variants
from jaxmodels.compare.diagnosis.replay import Change, Operation, Replayed
from jaxmodels.compare.diagnosis.variant import Variant


MOST_NAMED = 2  # mistakes that explain the same difference
MOST_OPERATIONS = 400  # that are looked at, the nearest first

Agrees = Callable[[Mapping[int, Change]], bool]


@dataclass(frozen=True)
class Finding:
    """A mistake that makes the difference vanish.

    Attributes:
      kind: of the mistake.
      what, cure: the two parts of its sentence.
      where: in words, at which operations.
    """

    kind: str
    what: str
    cure: str
    where: str


class Deadline:
    """Limits the computing time of a search, so that what it finds does not depend on what else the machine does."""

    def __init__(self, seconds: float) -> None:
        self.end = time.thread_time() + seconds

    @property
    def passed(self) -> bool:
        return time.thread_time() > self.end


@dataclass(frozen=True)
class Candidate:
    """A mistake made at one operation or at several."""

    rank: int
    variant: Variant
    operations: tuple[Operation, ...]
    changes: Mapping[int, Change]


def search(operations: Sequence[Operation], agrees: Agrees, deadline: Deadline) -> list[Finding]:
    """The mistakes that explain a difference, at most one of each kind.

    Args:
      operations: where they may be, the likeliest last.
      agrees: whether JAX's arrays come out when operations are changed.
      deadline: ends the search.
    """
    return first_that_hold(candidates(list(operations)[-MOST_OPERATIONS:]), agrees, deadline)


def first_that_hold(tried: Iterable[Candidate], agrees: Agrees, deadline: Deadline) -> list[Finding]:
    """The first candidates that explain a difference, at most one of each kind."""
    found: dict[str, Finding] = {}
    for candidate in tried:
        if deadline.passed or len(found) >= MOST_NAMED:
            break
        if candidate.variant.kind not in found and _holds(agrees, candidate.changes):
            variant = candidate.variant
            found[variant.kind] = Finding(
                variant.kind, variant.what, variant.cure, place_of(candidate.operations)
            )
    return list(found.values())


def candidates(operations: Sequence[Operation]) -> Iterator[Candidate]:
    """Every mistake at each operation that allows it, then at all of them, then all of one kind.

    The specific ones come first, and of the same those at later operations.
    """
    single: list[Candidate] = []
    for operation in reversed(operations):
        for rank, variant in variants(operation):
            single.append(Candidate(rank, variant, (operation,), {operation.index: variant.change}))
    single.sort(key=lambda one: one.rank)
    yield from single
    for key in (_same_sentence, _same_kind):
        groups: defaultdict[tuple[str, ...], list[Candidate]] = defaultdict(list)
        for one in single:
            groups[key(one)].append(one)
        for members in groups.values():
            together = {index: change for one in reversed(members) for index, change in one.changes.items()}
            if len(together) > 1:
                places = tuple({one.operations[0].index: one.operations[0] for one in members}.values())
                yield Candidate(members[0].rank, members[0].variant, places, together)


def in_words(findings: Sequence[Finding]) -> str | None:
    """One sentence for the mistakes that were found; None where there are none."""
    if not findings:
        return None
    parts = []
    for one in findings:
        where = f"{one.where}: " if one.where else ""
        parts.append(f"{where}{one.what}; {one.cure} removes the difference")
    return ", or, which gives the same here, ".join(parts)


def _same_sentence(one: Candidate) -> tuple[str, ...]:
    return one.operations[0].name, one.variant.what


def _same_kind(one: Candidate) -> tuple[str, ...]:
    return (one.variant.kind,)


def _holds(agrees: Agrees, changes: Mapping[int, Change]) -> bool:
    """Whether a change explains the difference; one that does not fit the arguments does not."""
    try:
        return agrees(changes)
    except Exception:
        return False


def place_of(operations: Sequence[Operation]) -> str:
    """The place of an operation in words: the layer that makes it, or the last one before it."""
    first = min(operations, key=lambda operation: operation.index)
    inside = first.within[-1][0] if first.within else ""
    if first.after is None or (first.after[0], first.after[2]) == (inside, "input"):
        return inside
    return f"after {first.after[0]}" if first.after[2] == "output" and first.after[0] else inside


def replayable(replay: Replayed, agrees: Callable[[tuple[np.ndarray, ...]], bool]) -> Agrees:
    """`search`'s question to a replayed forward pass."""

    def ask(changes: Mapping[int, Change]) -> bool:
        with torch.no_grad():
            return agrees(replay.run(changes))

    return ask
