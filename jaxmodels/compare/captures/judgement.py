"""The verdict on two captures, without the models, without an accelerator, and without either framework."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

from jaxmodels.compare.captures.checks import (
    Compared,
    check_gradients,
    check_layers,
    check_losses,
    check_outputs,
    check_statistics,
    check_weights_after,
    compare_routing,
    losses_of,
    weight_differences,
)
from jaxmodels.compare.captures.correspondence import Correspondence, by_values, same_names
from jaxmodels.compare.captures.diagnose import diagnosed
from jaxmodels.compare.captures.files import Capture, Run, read_capture
from jaxmodels.compare.captures.levels import (
    FLOAT32,
    LARGEST_RATIO,
    LevelFloor,
    epsilon_of,
    error_of,
    find_noise,
    products_of,
)
from jaxmodels.compare.captures.options import cast as cast_array
from jaxmodels.compare.divergence import Divergence, Findings, find_divergence
from jaxmodels.compare.noise import LARGEST_TOLERANCE, Check, coarser_sides, is_inexact
from jaxmodels.compare.outputs import ANY_AXES
from jaxmodels.compare.precision import LARGEST_FLOAT32_ERROR, Evidence
from jaxmodels.compare.result import Result
from jaxmodels.compare.routing import Routing
from jaxmodels.convert.table import Entry, Parameter


PREFERRED = ("float32", "float64", "bfloat16")  # of which the first that both captures have is compared
FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}
Source = str | Path | Capture


def judge(
    a: Source,
    b: Source,
    *more: Source,
    table: Sequence[Entry] | None = None,
    names: Mapping[str, str] | None = None,
    dtype: str | None = None,
    output_axes: str | Mapping[str, str] | None = None,
) -> Result:
    """Compares two captures.

    Args:
      a, b: folders of a PyTorch and a JAX capture, or of two captures of one framework, such as from two devices.
      more: further captures of either side in other types. They measure the noise: a PyTorch capture in float64
        on a CPU is the arbiter of two GPUs.
      table: which parameters and modules are which. By default the captures' own; without one, weights are paired
        by their values, which must be the same on both sides, and modules by their weights and names.
      names: dotted paths in JAX -> in PyTorch, of modules that are called otherwise; for the default table.
      dtype: which runs are compared; by default float32, or else what both captures have.
      output_axes: einops patterns from PyTorch's outputs to JAX's, as `Pair` takes them; by default the captures' own.

    Returns:
      All measurements and the verdict, as `compare` gives them. Where `a` and `b` are of one framework, `a` stands
      for PyTorch in its sentences.

    Raises:
      ValueError: a folder that is no capture, captures of other inputs, or no run in common.
      FileNotFoundError: no such folder.
    """
    first, second, *others = (one if isinstance(one, Capture) else read_capture(one) for one in (a, b, *more))
    theirs, ours = (second, first) if (first.side, second.side) == ("jax", "torch") else (first, second)
    for other in (ours, *others):
        _check_inputs(theirs, other)
        _check_modes(theirs, other)
    correspondence = _correspondence(theirs, ours, table, names)
    own = [one.settings["output_axes"] for one in (theirs, ours)]
    axes = output_axes or next((one for one in own if one != ANY_AXES), own[0])
    compared = _compared(theirs, ours, others, correspondence, dtype, axes)
    notes = [*_notes(theirs, ours, compared)]
    notes += [
        f"{path} in JAX: {reason}; it was not compared" for path, reason in correspondence.unpaired.items()
    ]
    finer = None
    if compared.floor.level == FLOAT32 and all("float64" in one.runs for one in (theirs, ours)):
        finer = _compared(theirs, ours, others, correspondence, "float64", axes)
        finer = finer if _coarser_inside(finer) is None else None
    result = _result(compared, finer, notes)
    coarser = _coarser_inside(compared) if result.divergence and compared.floor.level < FLOAT32 else None
    if coarser is None:
        return diagnosed(compared, result)
    # A side computes in float32 inside, on purpose. Then a difference below float32's digits is none.
    floor = replace(
        compared.floor, coarsest=FLOAT32, ratio=compared.floor.ratio * FLOAT32 / compared.floor.level
    )
    compared = replace(compared, floor=floor)
    result = diagnosed(compared, _result(compared, None, notes))
    return replace(result, unjudged=[*result.unjudged, coarser])


def _coarser_inside(compared: Compared) -> str | None:
    """Why runs in float64 show no more than float32's digits."""
    by_side = {
        capture.side: run.coarser
        for capture, run in zip(compared.captures, (compared.theirs, compared.ours), strict=True)
        if run.coarser
    }
    return coarser_sides(by_side.get("torch"), by_side.get("jax"))


def _result(compared: Compared, finer: Compared | None, notes: list[str]) -> Result:
    theirs = compared.captures[0]
    wrong = next((check for check in weight_differences(compared) if not check.ok), None)
    outputs = check_outputs(compared)
    layers, not_compared = check_layers(compared)
    unlike = _trained_otherwise(*compared.captures)
    gradients = check_gradients(compared)
    weights = [] if unlike else check_weights_after(compared)
    if unlike:
        notes.append(f"{unlike}, so no weights after the steps were compared")
    if all(check.ok for check in outputs):
        gradients = _kinks_settled(gradients, check_gradients(finer) if finer else None, notes)
        weights = _kinks_settled(weights, check_weights_after(finer) if finer else None, notes)
    loss_checks = check_losses(compared, outputs, trained_alike=unlike is None)
    losses, routing = losses_of(compared), compare_routing(compared)
    statistics = check_statistics(compared, notes)
    divergence = find_divergence(
        Findings(
            outputs=outputs,
            layers=layers,
            gradients=gradients,
            weights=weights,
            loss_checks=loss_checks,
            statistics=statistics,
            routing=routing,
            not_compared=not_compared,
            paths=[twin.theirs for twin in compared.twins],
            parameters=[entry.theirs for entry in compared.table if isinstance(entry, Parameter)],
            losses=(losses.jax[0], losses.pytorch[0]) if losses.jax else None,
        )
    )
    unjudged = _unjudged(compared)
    if divergence and divergence.kind != "routing" and (reason := _tossed_up(compared, routing)):
        divergence, unjudged = None, [*unjudged, reason]
    wrong_statistic = next((one for one in statistics if not one.ok), None)
    in_statistics = divergence is not None and divergence.kind == "statistics"
    return Result(
        model=theirs.name,
        dtype=cast(Any, compared.theirs.dtype),
        parameters=_number_of_parameters(theirs),
        outputs=outputs,
        layers=layers,
        not_compared=not_compared,
        gradients=gradients,
        weights=weights,
        weight_steps=theirs.settings["steps"] if weights else 0,
        losses=losses,
        loss_checks=loss_checks,
        divergence=_unequal_weight(wrong) if wrong else divergence,
        diagnosis=wrong_statistic.reason if in_statistics and wrong_statistic else None,
        precision=_evidence(compared),
        routing=routing,
        statistics=statistics,
        unjudged=unjudged,
        notes=list(dict.fromkeys(notes)),
    )


def _check_inputs(a: Capture, b: Capture) -> None:
    """Refuses captures of other inputs. Layouts may differ: the values must be the same, in any order.

    Raises:
      ValueError: names the input.
    """
    names = [(name, name) for name in a.inputs if name in b.inputs]
    if not names and len(a.inputs) == len(b.inputs):  # by their order
        names = list(zip(a.inputs, b.inputs, strict=True))
    if not names and (a.inputs or b.inputs):
        raise ValueError(
            f"captures must have the same inputs; {a.described} has {', '.join(a.inputs) or 'none'}, {b.described} has "
            f"{', '.join(b.inputs) or 'none'}"
        )
    for mine, other in names:
        if not _same_values(a.inputs[mine], b.inputs[other]):
            raise ValueError(
                f"captures must have the same inputs; {mine} has other values in {a.described} than in {b.described}: "
                "capture one of them again, with the inputs of the other's inputs.safetensors"
            )


def _check_modes(a: Capture, b: Capture) -> None:
    """Refuses captures of other modes.

    Raises:
      ValueError: names both.
    """
    if a.settings["mode"] != b.settings["mode"]:
        raise ValueError(
            f"captures must have the same mode; {a.described} has mode={a.settings['mode']!r}, {b.described} has "
            f"mode={b.settings['mode']!r}"
        )


def _same_values(a: np.ndarray, b: np.ndarray) -> bool:
    if is_inexact(a) and is_inexact(b) and a.dtype != b.dtype:
        a, b = a.astype(np.float32), b.astype(np.float32)
    return bool(np.array_equal(np.sort(a, axis=None), np.sort(b, axis=None), equal_nan=is_inexact(a)))


def _correspondence(
    theirs: Capture, ours: Capture, table: Sequence[Entry] | None, names: Mapping[str, str] | None
) -> Correspondence:
    given = table or theirs.table or ours.table
    if given and names is None:
        return Correspondence(list(given), {})
    if theirs.side == ours.side:
        return same_names(theirs)
    common = next((dtype for dtype in PREFERRED if dtype in theirs.runs and dtype in ours.runs), None)
    runs = [one.runs[common] if common else next(iter(one.runs.values())) for one in (theirs, ours)]
    coarsest = max(runs, key=lambda run: float(ml_dtypes.finfo(run.dtype).eps)).dtype
    a, b = ({key: _rounded(value, coarsest) for key, value in run.weights.items()} for run in runs)
    return by_values(theirs, ours, names or {}, (a, b))


def _rounded(weight: Any, dtype: str) -> Any:
    """A weight in the coarser type of the other side, in which both hold the same numbers."""
    return cast_array(weight, dtype) if isinstance(weight, np.ndarray) else weight


def _compared(
    theirs: Capture,
    ours: Capture,
    others: Sequence[Capture],
    correspondence: Correspondence,
    dtype: str | None,
    output_axes: str | Mapping[str, str],
) -> Compared:
    runs = _chosen_runs(theirs, ours, dtype)
    floor_runs = max(runs, key=epsilon_of)
    groups = [[one, *(other for other in others if other.side == one.side)] for one in (theirs, ours)]
    if theirs.side == ours.side:
        groups[0].append(ours)
    level, unmeasured = epsilon_of(floor_runs), None
    noise = find_noise(level, *groups)
    if noise is None or noise.ratio > LARGEST_RATIO:
        unmeasured = _unmeasured(theirs, ours, runs)
        if len({products_of(run) for run in runs}) == 2 or level > FLOAT32:
            level = min(level, FLOAT32)
        noise = find_noise(level, *groups)
    floor = LevelFloor("float32", level=level, ratio=noise.ratio if noise else 1.0, unmeasured=unmeasured)
    return Compared(
        theirs=runs[0],
        ours=runs[1],
        captures=(theirs, ours),
        table=correspondence.table,
        floor=floor,
        noise=noise,
        output_axes=output_axes,
    )


def _chosen_runs(theirs: Capture, ours: Capture, dtype: str | None) -> tuple[Run, Run]:
    if dtype is not None and not (dtype in theirs.runs and dtype in ours.runs):
        raise ValueError(
            f"dtype must be one in which both captures ran; got dtype={dtype!r}, {theirs.described} has "
            f"{', '.join(theirs.runs)}, {ours.described} has {', '.join(ours.runs)}"
        )
    common = dtype or next((one for one in PREFERRED if one in theirs.runs and one in ours.runs), None)
    if common:
        return theirs.runs[common], ours.runs[common]
    # Of unlike types, each side's finest.
    return min(theirs.runs.values(), key=epsilon_of), min(ours.runs.values(), key=epsilon_of)


def _unmeasured(theirs: Capture, ours: Capture, runs: tuple[Run, Run]) -> str:
    """Why no noise is known, and what would measure it."""
    kinds = [products_of(run) for run in runs]
    if kinds[0] != kinds[1]:
        return (
            f"{_products(theirs, runs[0])}, {_products(ours, runs[1])}; capture again with full_precision=True, or add "
            "a capture of one side in float64, float32 and bfloat16, which measures what such products change"
        )
    return (
        f"no capture measures the rounding noise of {kinds[0]}; add one of either side in "
        f"{'float64 and bfloat16' if kinds[0] != 'float32' else 'float32 and float64'}"
    )


def _products(capture: Capture, run: Run) -> str:
    """What a run's products were computed in, as part of a sentence."""
    off = f" (off by {error_of(run):.1e})" if products_of(run) != run.dtype else ""
    name = f"the {FRAMEWORKS[capture.side]} capture {capture.path.name if capture.path else ''}".strip()
    return f"{name} multiplied in {products_of(run)}{off}"


def _notes(theirs: Capture, ours: Capture, compared: Compared) -> list[str]:
    notes = [f"captures: {theirs.described} and {ours.described}"]
    kinds = [products_of(run) for run in (compared.theirs, compared.ours)]
    if kinds[0] != kinds[1] or kinds[0] != compared.theirs.dtype:
        notes.append(f"{_products(theirs, compared.theirs)}, {_products(ours, compared.ours)}")
    if theirs.side == ours.side:
        notes.append(
            f"both captures are of {FRAMEWORKS[theirs.side]}: in other sentences {theirs.described} is PyTorch"
        )
    return [*notes, *compared.theirs.notes, *compared.ours.notes]


def _trained_otherwise(theirs: Capture, ours: Capture) -> str | None:
    """Why the weights after the steps need not be the same."""
    if any(theirs.settings[key] != ours.settings[key] for key in ("steps", "training")):
        return "the captures were trained with other settings"
    training = theirs.settings["training"]
    if theirs.side != ours.side and not (training["same_in_optax"] or training["own"]):
        return f"optax's {training['optimizer']} is another one than torch.optim's with these options"
    return None


def _tossed_up(compared: Compared, routing: Routing | None) -> str | None:
    """Why a difference may be that of a toss-up: JAX's routers chose otherwise, and did not repeat PyTorch's choice."""
    ours = compared.captures[1]
    if (
        routing is None
        or not routing.differing
        or routing.first_fault
        or ours.settings.get("repeats_routing")
    ):
        return None
    return (
        f"{routing.differing} choices of routers differ, and each is a toss-up: capture JAX again with "
        "routing_from, the PyTorch capture, whose choices it then repeats"
    )


def _kinks_settled(checks: list[Check], finer: list[Check] | None, notes: list[str]) -> list[Check]:
    """What float32 cannot tell: a ReLU whose input is within rounding of zero may take the other branch.

    Float64 tells. Without it a difference that such a branch could make is undecided.
    """
    settled = []
    by_name = {check.name: check for check in finer or ()}
    for check in checks:
        other = by_name.get(check.name)
        if check.ok or not check.error <= LARGEST_TOLERANCE or (other is not None and not other.ok):
            settled.append(check)
        elif other is not None:
            notes.append(
                f"{check.name}: gradients or weights differ by {check.error:.1e} in float32 and agree in float64: an "
                "input within rounding of a kink, such as a ReLU's zero"
            )
            settled.append(replace(other, name=check.name))
        else:
            reason = (
                f"{check.name} differs by {check.error:.1e} after an equal forward pass, which a ReLU at its kink can "
                "do as well as a mistake; float64 on both sides tells"
            )
            settled.append(replace(check, tolerance=LARGEST_TOLERANCE, undecided=reason))
    return settled


def _unequal_weight(check: Check) -> Divergence:
    detail = (
        f"the weight {check.name} is not the same on both sides before the first step; "
        "a JAX model is captured with PyTorch's weights"
    )
    return Divergence(check.name.rpartition(".")[0] or check.name, detail, check.error, "layer")


def _unjudged(compared: Compared) -> list[str]:
    reasons = []
    has_weights = any(run.weights for run in (compared.theirs, compared.ours))
    if has_weights and not any(isinstance(entry, Parameter) for entry in compared.table):
        reasons.append("no weight of one capture was found in the other; give a table or names")
    for capture, run in zip(compared.captures, (compared.theirs, compared.ours), strict=True):
        bad = next(
            (name for name in capture.learned if name in run.weights and _is_bad(run.weights[name])), None
        )
        if bad:
            reasons.append(f"the weight {bad} holds values that are not finite")
    return reasons


def _is_bad(weight: Any) -> bool:
    if isinstance(weight, np.ndarray):
        return not np.isfinite(np.asarray(weight, np.float64)).all()
    return bool({"nan", "inf", "-inf"} & weight.odd.keys())


def _number_of_parameters(capture: Capture) -> int:
    run = next(iter(capture.runs.values()))
    return sum(int(run.weights[name].size) for name in capture.learned if name in run.weights)


def _evidence(compared: Compared) -> Evidence:
    errors = [
        max((e for e in run.products.values() if e is not None), default=0.0)
        for run in (compared.ours, compared.theirs)
    ]
    return Evidence("as captured", errors[0], errors[1], max(errors) < LARGEST_FLOAT32_ERROR)
