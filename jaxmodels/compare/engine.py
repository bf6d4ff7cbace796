"""The comparison itself: outputs, every layer, every gradient, and a training run with its losses and weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmodels.compare.backward import Backward, compare_training
from jaxmodels.compare.calls import layer_by_layer
from jaxmodels.compare.diagnosis.backward import FirstStep
from jaxmodels.compare.diagnosis.diagnose import diagnose
from jaxmodels.compare.diagnosis.forward import Forward
from jaxmodels.compare.divergence import Divergence, Findings, find_divergence, uncounted_difference
from jaxmodels.compare.forward import (
    DTYPES,
    Outputs,
    Router,
    TorchForward,
    compare_routing,
    jax_layers,
    jax_outputs,
    layer_checks,
    note_coarser_types,
    output_checks,
    refuse_random_jax,
    refuse_random_torch,
    repeating,
)
from jaxmodels.compare.internal_types import coarser_inside
from jaxmodels.compare.layers import Event, Key
from jaxmodels.compare.noise import (
    EQUAL_WEIGHTS,
    Check,
    DType,
    LayerCheck,
    Statistic,
    is_inexact,
)
from jaxmodels.compare.pair import Pair, parameters_of
from jaxmodels.compare.places import place_of_divergence
from jaxmodels.compare.precision import Evidence, full_precision
from jaxmodels.compare.preparation import (
    MODES,
    Mode,
    Subject,
    names_of_parameters,
    nearby_models,
    prepare,
    tied_in_torch_alone,
)
from jaxmodels.compare.result import OptimizerComparison, Result
from jaxmodels.compare.routing import Routing
from jaxmodels.compare.statistics import compare_statistics
from jaxmodels.compare.steps import torch_routing
from jaxmodels.compare.training import Training, with_learning_rate


STAGES = ("weights", "routing", "outputs", "layers", "gradients")
STEP_COST = 0.05  # of a training step on all sides, in stages
# How often PyTorch's noise is measured again, at nearby weights, before a difference of the forward pass is believed.
NOISE_DRAWS = 4

Progress = Callable[[str, float], None]


def compare(
    pair: Pair,
    *,
    dtype: DType = "float32",
    steps: int = 3,
    learning_rate: float = 1e-3,
    gradients: bool = True,
    mode: Mode = "eval",
    training: Training | None = None,
    progress: Progress = lambda stage, share: None,
) -> Result:
    """Runs both models of `pair` on shared weights and inputs.

    Args:
      pair: the two models. Neither's parameters are changed, except that `pair.ours` receives PyTorch's.
      dtype: floating-point type of weights and inputs. float64 needs `jax_enable_x64`.
      steps: batches of a training run on each side. Before each, the loss is compared at equal
        weights; in float64 so are the losses of the two runs and the weights after them, in float32 the weights
        after the first three steps. With 0 only the first loss and its gradient are.
      learning_rate: that of AdamW, where `training` names no other optimiser.
      gradients: False compares the forward pass alone.
      mode: "eval" as `model.eval()`, or "train" as `model.train()`. In training mode dropout layers that the table
        pairs use the same masks on both sides, the rates of all others are set to 0, and the running statistics
        after a forward pass are compared.
      training: the optimiser of the steps, and what belongs to it. optax's and torch.optim's are then compared as
        well, on the same gradients.
      progress: called with the name of each stage and of each step, and the share of the work that is done.

    Returns:
      All measurements. `verdict` is "equal", "different" with the place in `divergence`, or "cannot be judged" with
      the `reason`: what was compared would agree for a wrong port as well.

    Raises:
      ValueError: a wrong argument, weights that do not fit the table, batches unlike the inputs, a model that is
        random, or one that fails.
      ReducedPrecisionError: float32 products are computed with fewer digits.
    """
    _check_arguments(dtype, steps, mode)
    optimizer = with_learning_rate(training, learning_rate)
    with full_precision() as evidence, layer_by_layer():
        stages = _Stages(progress, steps if gradients else 0)

        def run(coarser: str | None = None) -> tuple[Subject, Result, _Measured]:
            stages.begin("weights")
            subject = prepare(pair, dtype, coarser, mode=mode)
            options = (
                {"steps": steps, "optimizer": optimizer, "compared": training is not None}
                if gradients
                else None
            )
            return subject, *_run(subject, evidence, stages, options)

        subject, result, measured = run()
        # A side may compute in float32 inside, on purpose. Then a difference below float32's digits is none.
        coarser = coarser_inside(subject) if result.divergence and dtype == "float64" else None
        if coarser:
            subject, result, measured = run(coarser)
        if result.divergence is None or result.diagnosis:
            return result
        return _diagnosed(subject, result, result.divergence, measured)


def _run(
    subject: Subject, evidence: Evidence, stages: "_Stages", options: Mapping[str, Any] | None
) -> tuple[Result, "_Measured"]:
    """Compares everything once; without `options`, those of the training, the forward pass alone."""
    router, routing = None, None
    if subject.pair.routing_ours and subject.pair.routing_theirs:
        stages.begin("routing")
        router = Router(subject)
        routing = compare_routing(subject, router)
    outputs, layers, not_compared = _compare_forward(subject, stages)
    training = Backward()
    if options is not None and _has_gradient(subject, outputs):
        stages.begin("gradients")
        training = compare_training(
            subject, outputs=outputs.checks, router=router, report_step=stages.begin_step, **options
        )
    statistics = compare_statistics(subject) if subject.mode == "train" else []
    parameters = _in_order_of_execution(subject, outputs.theirs.events[subject.dtype])
    result = _result(
        subject, evidence, outputs.checks, layers, not_compared, training, routing, statistics, parameters
    )
    return result, _Measured(outputs, layers, training)


def _check_arguments(dtype: str, steps: int, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be 'eval' or 'train'; got mode={mode!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be 'float32' or 'float64'; got dtype={dtype!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be an integer ≥ 0; got steps={steps!r}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "dtype='float64' needs jax.config.update('jax_enable_x64', True) before the first array is made"
        )


class _Stages:
    """Tells the caller what begins, and what share of the work is done."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self.progress, self.steps = progress, steps
        self.total = len(STAGES) + STEP_COST * steps

    def begin(self, name: str) -> None:
        self.progress(name, STAGES.index(name) / self.total)

    def begin_step(self, step: int) -> None:
        if step > 0:  # the first is the stage of the gradients
            done = len(STAGES) + STEP_COST * step
            self.progress(f"step {step + 1} of {self.steps}", done / self.total)


class _Outputs:
    """Outputs of both sides and the checks made of them."""

    def __init__(self, ours: Outputs, theirs: TorchForward) -> None:
        self.ours, self.theirs = ours, theirs
        self.events: Mapping[Key, Event] | None = None  # of JAX
        self.checks: list[Check] = []


class _Measured(NamedTuple):
    """What a diagnosis needs beside the result."""

    outputs: _Outputs
    layers: list[LayerCheck]
    training: Backward


def _diagnosed(subject: Subject, result: Result, divergence: Divergence, measured: _Measured) -> Result:
    """The result with the mistake that explains it, where one does."""
    outputs, training = measured.outputs, measured.training
    forward = Forward(
        events=outputs.theirs.events[subject.dtype],
        ours=outputs.events,
        outputs=outputs.ours,
        layers=measured.layers,
        checks=outputs.checks,
        call=repeating(subject.pair.call_theirs, subject, torch_routing),
    )
    first_step = None
    if training.first_run is not None:
        run = training.first_run
        check = next((one for one in training.loss_checks if one.name == f"loss 1{EQUAL_WEIGHTS}"), None)
        first_step = FirstStep(run.losses.jax[0], check, run.gradients, training.gradient_factor)
    try:
        return replace(result, diagnosis=diagnose(subject, divergence, forward, first_step))
    except Exception as error:  # the comparison stands without it
        note = f"no mistake was looked for: {type(error).__name__}: {error}"
        return replace(result, notes=[*result.notes, note])


def _compare_forward(subject: Subject, stages: _Stages) -> tuple[_Outputs, list[LayerCheck], dict[str, str]]:
    """Outputs and layers; where they differ, PyTorch's noise is measured again at other weights."""
    stages.begin("outputs")
    theirs = TorchForward(subject, subject.models)
    refuse_random_torch(subject, theirs)
    subject.floor = theirs.floor(subject)
    outputs = _Outputs(jax_outputs(subject, subject.pair.ours), theirs)
    output_noise, event_noise = theirs.output_noise(), theirs.event_noise()
    stages.begin("layers")
    events = outputs.events = _jax_events(subject, outputs)
    note_coarser_types(subject, events, theirs)
    outputs.checks = output_checks(subject, outputs.ours, theirs, output_noise)
    layers, not_compared = layer_checks(subject, events, theirs, event_noise)
    if not all(check.ok for check in [*outputs.checks, *layers]):
        for seed in range(NOISE_DRAWS):
            draw = TorchForward(subject, nearby_models(subject, seed))
            _keep_larger(output_noise, draw.output_noise())
            _keep_larger(event_noise, draw.event_noise())
        outputs.checks = output_checks(subject, outputs.ours, theirs, output_noise)
        layers, not_compared = layer_checks(subject, events, theirs, event_noise)
    return outputs, layers, not_compared


def _jax_events(subject: Subject, outputs: _Outputs) -> Mapping[Key, Event] | None:
    eager, events = jax_layers(subject)
    refuse_random_jax(subject, outputs.ours, eager)
    return events


def _keep_larger(noise: dict[Any, float], other: Mapping[Any, float]) -> None:
    for key, value in other.items():
        if key in noise and np.isfinite(value):
            noise[key] = max(noise[key], value)


def _has_gradient(subject: Subject, outputs: _Outputs) -> bool:
    """Whether there is something to differentiate, and by which to do so."""
    if not names_of_parameters(subject):
        subject.notes.append("the models share no parameter that is learned, so no gradient was compared")
        return False
    values = [*outputs.ours.values(), *outputs.theirs.outputs[subject.dtype].values()]
    if subject.pair.loss_theirs is not None or any(is_inexact(value) for value in values):
        return True
    subject.notes.append(
        "no output is floating-point, so no gradient was compared; loss_ours and loss_theirs give one"
    )
    return False


def _diagnosis(
    divergence: Divergence | None, statistics: list[Statistic], optimizers: OptimizerComparison | None
) -> str | None:
    if divergence is not None and divergence.kind == "statistics":
        wrong = next((check for check in statistics if not check.ok), None)
        return wrong.reason if wrong else None
    return (
        optimizers.explanation
        if divergence is not None and divergence.kind == "optimizer" and optimizers
        else None
    )


def _in_order_of_execution(subject: Subject, events: Sequence[Event]) -> list[str]:
    """The names of all parameters, by the first call of the module that owns them."""
    first: dict[str, int] = {}
    for time, event in enumerate(events):
        first.setdefault(event.path, time)
    names = [entry.theirs for entry in parameters_of(subject.pair.table)]
    return sorted(names, key=lambda name: first.get(name.rpartition(".")[0], -1))


def _result(
    subject: Subject,
    evidence: Evidence,
    outputs: list[Check],
    layers: list[LayerCheck],
    not_compared: dict[str, str],
    training: Backward,
    routing: Routing | None,
    statistics: list[Statistic],
    parameters: Sequence[str],
) -> Result:
    losses = training.losses
    divergence = find_divergence(
        Findings(
            outputs=outputs,
            layers=layers,
            gradients=training.gradients,
            weights=training.weights,
            loss_checks=training.loss_checks,
            statistics=statistics,
            not_compared=not_compared,
            paths=[twin.theirs for twin in subject.pair.twins],
            parameters=parameters,
            tied=tied_in_torch_alone(subject),
            losses=(losses.jax[0], losses.pytorch[0]) if losses.jax else None,
            own_loss=subject.pair.loss_ours is not None,
            gradient_factor=training.gradient_factor,
            routing=routing,
            later_fault=training.later_fault,
            optimizer=training.optimizer_divergence,
        )
    )
    if divergence is None:
        _note_uncounted_difference(subject, layers)
    return Result(
        model=subject.pair.name,
        dtype=subject.dtype,
        parameters=subject.parameters,
        outputs=outputs,
        layers=layers,
        not_compared=not_compared,
        gradients=training.gradients,
        weights=training.weights,
        weight_steps=training.weight_steps if training.weights else 0,
        losses=losses,
        loss_checks=training.loss_checks,
        divergence=divergence,
        code=place_of_divergence(subject.pair.ours, subject.pair.twins, divergence) if divergence else None,
        diagnosis=_diagnosis(divergence, statistics, training.optimizers),
        precision=evidence,
        routing=routing,
        statistics=statistics,
        optimizers=training.optimizers,
        unjudged=subject.unjudged,
        notes=list(dict.fromkeys(subject.notes)),
    )


def _note_uncounted_difference(subject: Subject, layers: list[LayerCheck]) -> None:
    uncounted = uncounted_difference(layers)
    if uncounted:
        subject.notes.append(
            f"{uncounted.name}: its {uncounted.kind} in call {uncounted.call + 1} differs by "
            f"{uncounted.error:.1e}, but the outputs agree: the two modules divide the work differently, or "
            "are called in another order"
        )
