"""A verdict in words: where the two sides differ, which mistake it is, what to try next."""

import math

from jaxmodels.compare.divergence import MODEL, Divergence
from jaxmodels.compare.result import Result


NEXT_STEPS = {
    "layer": "look at the weights and arguments of {layer}: kernel layout, padding, epsilon, activation, dtype",
    "code": "the layers are right; look at the lines of {layer} between those that are named",
    "outputs": "pair more modules, so that the place can be found: names in table_from_names, or Twin entries in table",
    "optimizer": "compare the arguments of both optimisers, clipping and schedules included",
    "statistics": "look at the momentum of {layer}, and at how its running variance is computed",
    "loss": "compare loss_ours with loss_theirs: mean or sum, label smoothing, ignored labels, weights of its terms",
    "gradients": "look for what only gradients see: detach and stop_gradient, tied weights, custom_vjp, clipping",
    "training": "compare in float64 (--dtype float64): if the difference stays, look at what changes between two steps",
    "routing": "look at the scores of {layer} and at how it selects tokens",
}
NEXT_STEP_UNJUDGED = (
    "remove the reason: random weights instead of constant ones, inputs without NaN, outputs in float32"
)


def next_step(result: Result) -> str | None:
    """What to try next, in one sentence; None where both sides are equal."""
    if result.verdict == "equal":
        return None
    if result.divergence is None:
        return NEXT_STEP_UNJUDGED
    if result.diagnosis:
        return f"make the change in {_place(result.divergence)} that the mistake names, and compare again"
    return NEXT_STEPS[result.divergence.kind].format(layer=_place(result.divergence))


def explain(result: Result) -> dict[str, str]:
    """The verdict as sentences by what they tell, in the order of interest; empty where both sides are equal."""
    if result.verdict == "equal":
        return {}
    lines = {}
    if result.divergence is not None:
        lines["layer"] = result.divergence.layer
        lines["difference"] = f"{result.divergence.detail} (error {number(result.divergence.error)})"
    if result.reason:
        lines["cannot be judged"] = result.reason
    if result.diagnosis:
        lines["mistake"] = result.diagnosis
    if result.code:
        lines["code"] = str(result.code)
    lines["next"] = next_step(result) or ""
    return lines


def number(value: float) -> str:
    """An error as reports write it."""
    return "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "∞"


def _place(divergence: Divergence) -> str:
    return "the model" if divergence.layer == MODEL else divergence.layer
