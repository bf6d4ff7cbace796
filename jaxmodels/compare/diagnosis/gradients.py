"""Where JAX may stop a gradient that PyTorch lets through, or the reverse. Needs no JAX."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from jaxmodels.compare.diagnosis.replay import Change, Operation
from jaxmodels.compare.diagnosis.search import Candidate, Deadline, place_of
from jaxmodels.compare.diagnosis.variant import Variant, instead, on_result, with_argument


MOST_PLACES = 400  # at which a missing detach is looked for
MOST_FIRST = 8  # places to which every other one is added

Gradients = Mapping[str, np.ndarray]
Place = tuple[Operation, ...]  # one line of code: its operation in every block that runs it


def gradient_candidates(operations: Sequence[Operation]) -> list[Candidate]:
    """Gradients that JAX lets through where PyTorch stops them, and the reverse."""
    detached = [one for one in operations if one.name in ("detach", "detach_", "stop_gradient")]
    what = "JAX differentiates through what PyTorch detaches"
    through = Variant("detach", what, "jax.lax.stop_gradient", instead(lambda x, *_, **__: x))
    candidates = _one_by_one_and_together(through, detached)
    for index in dict.fromkeys(map(_padding_index, operations)):
        if index is not None:
            padded = [one for one in operations if _padding_index(one) == index]
            candidates += _one_by_one_and_together(_padding(index), padded)
    single = [(operation,) for operation in reversed(operations)][:MOST_PLACES]
    repeated = [place for place in _places(operations) if len(place) > 1]
    return candidates + [_stopped(place) for place in single + repeated]


def candidates_of_two_places(
    operations: Sequence[Operation],
    gradients: Callable[[Mapping[int, Change]], Gradients],
    ours: Gradients,
    deadline: Deadline,
) -> Iterator[Candidate]:
    """Two places at which JAX stops the gradient, the likeliest first.

    What is learned through two places mostly adds up. So either of the two alone brings PyTorch nearer to JAX.

    Args:
      operations: of the loss.
      gradients: PyTorch's when operations are changed.
      ours: JAX's.
      deadline: ends the search.
    """
    unchanged = gradients({})
    scales = {name: float(np.abs(value).max(initial=0.0)) or 1.0 for name, value in unchanged.items()}

    def distance(found: Gradients) -> float:
        return sum(
            float(np.abs(found[name] - ours[name]).max(initial=0.0)) / scale for name, scale in scales.items()
        )

    before = distance(unchanged)
    nearer: dict[float, Candidate] = {}  # of places with the same effect, such as views, the last one stays
    for place in _places(operations)[:MOST_PLACES]:
        if deadline.passed:
            return
        candidate = _stopped(place)
        after = distance(gradients(candidate.changes))
        if after < before:
            nearer.setdefault(round(after, 9), candidate)
    ordered = [nearer[key] for key in sorted(nearer)]
    for i, first in enumerate(ordered[:MOST_FIRST]):
        for second in ordered[i + 1 :]:
            yield _both(first, second)


def _one_by_one_and_together(variant: Variant, operations: Sequence[Operation]) -> list[Candidate]:
    places = [(one,) for one in operations] + ([tuple(operations)] if len(operations) > 1 else [])
    return [Candidate(0, variant, place, {one.index: variant.change for one in place}) for place in places]


def _padding_index(operation: Operation) -> int | None:
    """The `padding_idx` of an embedding; None where there is none."""
    return operation.argument(2, "padding_idx") if operation.name == "embedding" else None


def _padding(index: int) -> Variant:
    what = f"PyTorch's nn.Embedding(padding_idx={index}) never trains row {index}, JAX's embedding does"
    cure = (
        f"jnp.where((ids == {index})[..., None], jax.lax.stop_gradient(x), x) of the embedding x (or, if that row "
        "may train, padding_idx=None in PyTorch)"
    )
    return Variant("detach", what, cure, with_argument(2, "padding_idx", None))


def _places(operations: Sequence[Operation]) -> list[Place]:
    """The operations that one line of code makes, the last line first.

    Blocks of a network are modules whose paths differ in numbers alone; they run the same code.
    """
    lines: defaultdict[tuple[str, str, int], list[Operation]] = defaultdict(list)
    seen: Counter[tuple[tuple[str, int], str]] = Counter()
    for operation in operations:
        call = operation.within[-1] if operation.within else ("", 0)
        number = seen[call, operation.name]
        seen[call, operation.name] += 1
        lines[re.sub(r"\d+", "#", call[0]), operation.name, number].append(operation)
    return [tuple(line) for line in sorted(lines.values(), key=lambda line: -line[-1].index)]


def _stopped(place: Place) -> Candidate:
    what = f"JAX stops the gradient of {place[0].name}, PyTorch does not"
    if len(place) > 1:
        what = f"JAX stops the gradient of {place[0].name} at {len(place)} such places, PyTorch does not"
    variant = Variant("detach", what, "leaving jax.lax.stop_gradient out", on_result(_detached))
    return Candidate(0, variant, place, {one.index: variant.change for one in place})


def _both(first: Candidate, second: Candidate) -> Candidate:
    early, late = sorted((first, second), key=lambda one: one.operations[0].index)
    where = place_of(late.operations)
    what = (
        f"JAX stops the gradients of {early.operations[0].name} and{f', {where},' if where else ''} of "
        f"{late.operations[0].name}, PyTorch does not"
    )
    variant = Variant("detach", what, "leaving jax.lax.stop_gradient out twice", early.variant.change)
    return Candidate(0, variant, early.operations + late.operations, {**early.changes, **late.changes})


def _detached(result: object) -> object:
    if isinstance(result, torch.Tensor):
        return result.detach()
    return tuple(map(_detached, result)) if isinstance(result, tuple) else result
