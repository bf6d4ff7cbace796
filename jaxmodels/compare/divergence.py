"""The verdict: from checks to the place where the two sides first differ. Numbers and names in, words out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxmodels.compare.noise import EQUAL_WEIGHTS, Check, LayerCheck, Statistic
from jaxmodels.compare.routing import RouterAgreement, Routing


Verdict = Literal["equal", "different", "cannot be judged"]
Kind = Literal[
    "layer", "code", "outputs", "statistics", "loss", "gradients", "training", "optimizer", "routing"
]

MODEL = "(model)"  # the model's own code, outside of its layers
LOSS = "(loss)"
OPTIMIZER = "(optimizer)"
NOT_COMPARED = "No layer could be compared"


@dataclass(frozen=True)
class Divergence:
    """Where the two sides first differ.

    Attributes:
      layer: the PyTorch path of the module at fault, "(model)" for the model's own code, or "(loss)".
      detail: one sentence: between which layers, or in what.
      error: how far apart they are there.
      kind: "layer" gets the same input and returns another output; "code" calls layers that are right; "outputs"
        differ although every compared layer agrees; or what else is the first thing to differ.
      after, before: for "code", the PyTorch paths of the layers between which it lies, as far as there are any.
    """

    layer: str
    detail: str
    error: float
    kind: Kind
    after: str | None = None
    before: str | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was measured of a pair.

    Attributes:
      outputs, layers, gradients, weights: checks; layers in PyTorch's order of execution.
      loss_checks: losses at equal weights, then those of the two runs.
      statistics: running statistics after a forward pass in training mode.
      not_compared: PyTorch paths of modules of which no call was compared, and why.
      paths: the PyTorch paths of all modules that the table knows; "" is the model.
      parameters: the names of all parameters, in the order in which PyTorch first uses them.
      tied: names of parameters that are one in PyTorch and several in Flax, each with another one of its names.
      losses: the first loss in JAX and in PyTorch.
      own_loss: whether the pair brings its losses along.
      gradient_factor: by which every gradient of JAX is PyTorch's, where there is such a number.
      routing: how far routers agree on the inputs.
      optimizer: where a user's two optimisers differ on the same gradients.
      later_fault: the first router that overturned a clear choice in training, and the step.
    """

    outputs: Sequence[Check] = ()
    layers: Sequence[LayerCheck] = ()
    gradients: Sequence[Check] = ()
    weights: Sequence[Check] = ()
    loss_checks: Sequence[Check] = ()
    statistics: Sequence[Statistic] = ()
    not_compared: Mapping[str, str] = field(default_factory=dict)
    paths: Sequence[str] = ()
    parameters: Sequence[str] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    losses: tuple[float, float] | None = None
    own_loss: bool = True
    gradient_factor: float | None = None
    routing: Routing | None = None
    later_fault: tuple[RouterAgreement, int] | None = None
    optimizer: Divergence | None = None


def find_divergence(findings: Findings) -> Divergence | None:
    """The first place where the two sides differ; None where they agree.

    A difference between layers that are free to divide their work differently counts only where outputs,
    losses, gradients or weights differ as well.
    """
    first = _first_difference(findings.layers)
    overturned = _overturned_choice(findings, first)
    if overturned:
        return overturned
    outputs = _in_outputs(findings)
    if outputs:
        return outputs if first is None else _at_layer(findings, first)
    proven = next((i for i in range(len(findings.layers)) if _is_fault_by_itself(findings.layers, i)), None)
    if proven is not None:
        return _at_layer(findings, proven)
    return (
        _in_loss(findings)
        or _in_gradients(findings)
        or findings.optimizer
        or _in_training(findings)
        or _in_statistics(findings)
    )


def verdict(divergence: Divergence | None, checks: Iterable[Check]) -> tuple[Verdict, str | None]:
    """The verdict, and the reason where there can be none."""
    if divergence is not None:
        return "different", None
    reasons = list(dict.fromkeys(check.undecided for check in checks if check.undecided))
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return "cannot be judged", reasons[0] + more
    return "equal", None


def uncounted_difference(layers: Sequence[LayerCheck]) -> LayerCheck | None:
    """For pairs that are equal: the first call that nevertheless differs."""
    index = _first_difference(layers)
    return None if index is None else layers[index]


def layers_compared(findings: Findings) -> str:
    """How many modules were compared, and why others were not, as part of a sentence."""
    compared = {check.name for check in findings.layers if check.error != float("inf") or check.binding}
    if not compared:
        reasons = sorted(set(findings.not_compared.values())) or ["the table pairs no modules"]
        return f"{NOT_COMPARED} ({'; '.join(reasons)})"
    total = len(compared) + len(findings.not_compared)
    return f"{len(compared)} of {total} layers were compared"


def _first_difference(layers: Sequence[LayerCheck]) -> int | None:
    """The position of the first call that differs.

    A container may divide the work differently: if the next call agrees again, nothing is wrong there.
    """
    for i, check in enumerate(layers):
        if check.ok:
            continue
        if not check.binding and i + 1 < len(layers) and layers[i + 1].ok:
            continue
        return i
    return None


def _is_fault_by_itself(layers: Sequence[LayerCheck], index: int) -> bool:
    """Whether this call shows a fault even if all outputs agree: modules that must agree get the same and differ."""
    check = layers[index]
    if check.ok or not check.binding:
        return False
    inputs = [c for c in layers if (c.name, c.call, c.kind) == (check.name, check.call, "input")]
    return check.kind == "input" or all(c.ok for c in inputs)


def _overturned_choice(findings: Findings, first: int | None) -> Divergence | None:
    """A router that overturned a clear choice, unless an earlier layer that differs explains it."""
    fault = findings.routing.first_fault if findings.routing else None
    if fault is None:
        return None
    places = [i for i, c in enumerate(findings.layers) if c.name == fault.name and c.kind == "output"]
    if first is None or not places or places[0] <= first:
        return overturned_choice(fault)
    return None


def overturned_choice(fault: RouterAgreement, where: str = "") -> Divergence:
    """A router that chose otherwise although the choice was clear."""
    detail = f"{fault.differing} of {fault.choices} choices differ{where}, by margins up to {fault.lost_margin:.1e}"
    return Divergence(fault.name, detail, fault.lost_margin, "routing")


def _at_layer(findings: Findings, index: int) -> Divergence:
    check = findings.layers[index]
    again = f" (call {check.call + 1})" if check.call else ""
    name = check.name or MODEL
    if check.kind == "output":
        what = "an output of another shape" if check.error == float("inf") else "another output"
        return Divergence(name, f"{name}{again} gets the same input and returns {what}", check.error, "layer")
    parent = _parent(check.name, findings.paths) or MODEL
    earlier = [c.name for c in findings.layers[:index] if c.kind == "output" and c.ok]
    after = earlier[-1] if earlier else None
    since = "" if after is None else f" after {after}"
    detail = f"in the code of {parent}{since}, before {name}{again}"
    return Divergence(parent, detail, check.error, "code", after, check.name)


def _parent(path: str, known: Iterable[str]) -> str:
    """The innermost module of the table around `path`; "" is the model."""
    known = set(known)
    while path:
        path = path.rpartition(".")[0]
        if path in known:
            break
    return path


def _in_outputs(findings: Findings) -> Divergence | None:
    wrong = next((check for check in findings.outputs if not check.ok), None)
    if wrong is None:
        return None
    compared = layers_compared(findings)
    if compared.startswith(NOT_COMPARED):
        return Divergence(MODEL, f"{wrong.name} differs. {compared}", wrong.error, "outputs")
    agreeing = f"although all layers that were compared agree ({compared})"
    return Divergence(MODEL, f"{wrong.name} differs {agreeing}", wrong.error, "outputs")


def _in_loss(findings: Findings) -> Divergence | None:
    """The first loss: it is computed of outputs that agree."""
    check = next((check for check in findings.loss_checks if check.name == f"loss 1{EQUAL_WEIGHTS}"), None)
    if check is None or check.ok or not findings.losses:
        return None
    ours, theirs = findings.losses
    detail = f"the outputs agree, the loss does not: {ours:.6g} in JAX, {theirs:.6g} in PyTorch"
    return Divergence(LOSS, detail, check.error, "loss")


def _in_gradients(findings: Findings) -> Divergence | None:
    wrong = [check for check in findings.gradients if not check.ok]
    if not wrong:
        return None
    if findings.gradient_factor is not None:
        detail = (
            "outputs and the value of the loss agree, but every gradient in JAX is "
            f"{findings.gradient_factor:.4g} times PyTorch's: "
        )
        error = max(check.error for check in wrong)
        if findings.own_loss:
            return Divergence(LOSS, f"{detail}the loss is differentiated differently", error, "gradients")
        return Divergence(
            MODEL, f"{detail}what follows the last layer is differentiated differently", error, "gradients"
        )
    # The gradient flows backwards: the last parameter is the first that it reaches.
    order = {name: i for i, name in enumerate(findings.parameters)}
    last = max(wrong, key=lambda check: order.get(check.name, -1))
    detail = f"the forward pass agrees, the gradient of {last.name} does not"
    if last.name in findings.tied:
        detail += f": PyTorch ties it to {findings.tied[last.name]}, and JAX has two parameters"
    return Divergence(_owner(last.name), detail, last.error, "gradients")


def _in_training(findings: Findings) -> Divergence | None:
    """What only the steps bring to light; the first step's outputs and gradients agree."""
    if findings.later_fault:
        fault, step = findings.later_fault
        return overturned_choice(fault, f" on the batch of step {step}")
    unequal = [check for check in findings.loss_checks if not check.ok]
    if unequal and unequal[0].name.endswith(EQUAL_WEIGHTS):
        detail = f"outputs and gradients of the first batch agree, {unequal[0].name} does not"
        return Divergence(MODEL, detail, unequal[0].error, "training")
    wrong = [check for check in findings.weights if not check.ok]
    if wrong:
        detail = f"gradients agree, {wrong[0].name} does not after the optimiser steps"
        return Divergence(_owner(wrong[0].name), detail, wrong[0].error, "training")
    if unequal:
        detail = f"the runs drift apart: {unequal[0].name} differs, although at equal weights no loss does"
        return Divergence(MODEL, detail, unequal[0].error, "training")
    return None


def _in_statistics(findings: Findings) -> Divergence | None:
    """Last, since no output of a training run depends on them."""
    wrong = next((check for check in findings.statistics if not check.ok), None)
    if wrong is None:
        return None
    detail = f"outputs in training mode agree, {wrong.name} does not after the forward pass"
    return Divergence(_owner(wrong.name), detail, wrong.error, "statistics")


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
