"""Which mistake explains a difference of two captures. Needs PyTorch; without it no mistake is looked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmodels.compare.captures.checks import (
    Compared,
    check_gradients,
    check_losses,
    check_outputs,
    standard_layers,
    weight_differences,
)
from jaxmodels.compare.divergence import Divergence
from jaxmodels.compare.layers import Event, Key, differences
from jaxmodels.compare.noise import Check, LayerCheck
from jaxmodels.compare.outputs import matched
from jaxmodels.compare.result import Result


if TYPE_CHECKING:
    from jaxmodels.compare.captures.replay import Recording
    from jaxmodels.compare.diagnosis.search import Finding

# Which run shows a divergence.
KINDS = {"layer": "forward", "code": "forward", "outputs": "forward", "loss": "loss", "gradients": "loss"}


def diagnosed(compared: Compared, result: Result) -> Result:
    """The result with the mistake that explains its divergence, or with a note why none was looked for."""
    divergence = result.divergence
    if divergence is None or divergence.kind not in KINDS:
        return result
    if not all(check.ok for check in weight_differences(compared)):  # then nothing else is the mistake
        return result
    problem = _problem(compared)
    if problem is None:
        try:
            return replace(result, diagnosis=_diagnosis(compared, result, divergence))
        except ValueError as error:
            problem = str(error)
        except Exception as error:  # the judgement stands without it
            problem = f"{type(error).__name__}: {error}"
    return replace(result, notes=[*result.notes, f"no mistake was looked for: {problem}"])


def _problem(compared: Compared) -> str | None:
    if not compared.theirs.operations:
        return f"{compared.captures[0].described} holds no operations of PyTorch in {compared.theirs.dtype}"
    if compared.is_coarse:
        return "the types are too coarse to tell one mistake from another"
    return None if find_spec("torch") else "PyTorch is not installed; judge the captures where it is"


def _diagnosis(compared: Compared, result: Result, divergence: Divergence) -> str | None:
    from jaxmodels.compare.captures.replay import Recording
    from jaxmodels.compare.diagnosis.search import in_words

    kind = KINDS[divergence.kind]
    recording = Recording(compared.theirs.operations[kind], compared.theirs, compared.captures[0].inputs)
    if kind == "loss":
        return in_words(_explain_loss(compared, recording, divergence))
    return in_words(_explain_forward(compared, result, recording, divergence))


def _explain_forward(
    compared: Compared, result: Result, recording: "Recording", divergence: Divergence
) -> list["Finding"]:
    from jaxmodels.compare.captures.replay import RecordedReplay
    from jaxmodels.compare.diagnosis.explain import explain, units_around

    check = next((one for one in result.layers if not one.ok and one.error == divergence.error), None)
    target = None if check is None else (check.name, check.call, check.kind)
    known = {twin.theirs for twin in compared.twins}
    units = [""] if target is None else units_around(target, known)
    replays = (RecordedReplay(recording, unit=unit, target=target) for unit in units)
    compare = _outputs_agree(compared) if check is None else _event_agrees(compared, check)
    norms = _norms_of_jax(compared, target)
    return explain(replays, result.layers, compared.theirs.events, target, compare, norms)


def _norms_of_jax(compared: Compared, target: Key | None) -> list[float]:
    """The Euclidean norms of JAX's arrays at an event, or of its outputs; NaN for projections."""
    from jaxmodels.compare.diagnosis.explain import norm_of

    if target is None:
        arrays = [mine for _, mine, _ in matched(compared.ours.outputs, compared.theirs.outputs)]
    else:
        path, call, kind = target
        twin = next(twin for twin in compared.twins if twin.theirs == path)
        arrays = next(event.arrays for event in compared.ours.events if event.key == (twin.ours, call, kind))
    return [norm_of(array) if isinstance(array, np.ndarray) else float("nan") for array in arrays]


def _event_agrees(compared: Compared, check: LayerCheck) -> Callable[[tuple[np.ndarray, ...]], bool]:
    ours = {event.key: event for event in compared.ours.events}
    twins = [twin for twin in compared.twins if twin.theirs == check.name]
    known = standard_layers(compared)

    def agrees(arrays: tuple[np.ndarray, ...]) -> bool:
        event = Event(check.name, check.call, check.kind, arrays)
        found, _ = differences([event], ours, twins, known=known)
        return bool(found) and found[0].error <= check.tolerance

    return agrees


def _outputs_agree(compared: Compared) -> Callable[[tuple[np.ndarray, ...]], bool]:
    """All outputs, in the order in which the model returned them."""
    names = list(compared.theirs.outputs)

    def agrees(arrays: tuple[np.ndarray, ...]) -> bool:
        run = replace(compared.theirs, outputs=dict(zip(names, arrays, strict=True)))
        return _all_agree(check_outputs(replace(compared, theirs=run)))

    return agrees


def _explain_loss(compared: Compared, recording: "Recording", divergence: Divergence) -> list["Finding"]:
    from jaxmodels.compare.captures.replay import RecordedReplay
    from jaxmodels.compare.diagnosis.explain import SECONDS
    from jaxmodels.compare.diagnosis.gradients import candidates_of_two_places, gradient_candidates
    from jaxmodels.compare.diagnosis.search import Deadline, first_that_hold, search

    replay = RecordedReplay(recording, unit="", target=None)
    deadline = Deadline(SECONDS)
    outputs = check_outputs(compared)

    def agrees(changes: Mapping[int, Any]) -> bool:
        (loss,) = replay.run(changes)
        losses = [float(loss), *compared.theirs.losses[1:]]
        run = replace(compared.theirs, losses=losses)
        if not _all_agree(check_losses(replace(compared, theirs=run), outputs)[:1]):
            return False
        run.gradients = recording.gradients(changes, compared.captures[0].learned)
        return _all_agree(check_gradients(replace(compared, theirs=run)))

    if divergence.kind == "loss":
        outside = [one for one in replay.operations if not one.within]
        found = search(outside, agrees, deadline)
        if found:
            return found
    found = first_that_hold(gradient_candidates(replay.operations), agrees, deadline)
    if found:
        return found
    ours, learned = compared.tensors("gradients").ours, compared.captures[0].learned

    def gradients(changes: Mapping[int, Any]) -> dict[str, np.ndarray]:
        theirs = recording.gradients(changes, learned)
        return {name: theirs[name] for name in ours if name in theirs}

    pairs = candidates_of_two_places(replay.operations, gradients, ours, deadline)
    return first_that_hold(pairs, agrees, deadline)


def _all_agree(checks: Sequence[Check]) -> bool:
    """Whether all are within their tolerance, and none is undecided by more than noise."""
    return bool(checks) and all(check.ok for check in checks)
