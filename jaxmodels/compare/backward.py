"""Gradients, losses and weights of a training run on each side, each against its tolerance."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from flax import nnx

from jaxmodels.compare.divergence import OPTIMIZER, Divergence
from jaxmodels.compare.forward import Router
from jaxmodels.compare.noise import (
    LARGEST_TOLERANCE,
    SMALL_GRADIENT,
    Check,
    Draw,
    loss_checks,
    only_rounding,
    tensor_checks,
    with_shared_noise,
)
from jaxmodels.compare.pair import Inputs
from jaxmodels.compare.preparation import (
    Models,
    Subject,
    loadable_arrays,
    names_of_parameters,
    nearby_models,
)
from jaxmodels.compare.result import Losses, OptimizerComparison
from jaxmodels.compare.routing import RouterAgreement
from jaxmodels.compare.steps import FlaxTrainer, TrainingRuns, refuse_random_loss, train
from jaxmodels.compare.training import Training


# In float32, runs that take different branches of a ReLU or a top-k drift apart; this is not an error. Weights are
# compared before that, losses at equal weights.
FLOAT32_STEPS = 3
# Points near the weights at which a float32 difference is looked for again.
NEARBY_POINTS = 8


@dataclass(kw_only=True)
class Backward:
    """What the training runs show; empty where none was made."""

    gradients: list[Check] = field(default_factory=list)
    weights: list[Check] = field(default_factory=list)
    loss_checks: list[Check] = field(default_factory=list)
    losses: Losses = field(default_factory=Losses)
    weight_steps: int = 0
    gradient_factor: float | None = None
    first_run: TrainingRuns | None = None
    later_fault: tuple[RouterAgreement, int] | None = None
    optimizers: OptimizerComparison | None = None
    optimizer_divergence: Divergence | None = None


def compare_training(
    subject: Subject,
    *,
    steps: int,
    optimizer: Training,
    compared: bool,
    outputs: list[Check],
    router: Router | None,
    report_step: Callable[[int], None],
) -> Backward:
    """Trains both sides, and compares the first gradient, the losses of all steps and the weights after some.

    Args:
      steps: batches; with 0 only the first gradient and the first loss are compared.
      optimizer: of the steps.
      compared: whether the two libraries' optimisers are compared as well, on the same gradients.
      outputs: the checks of the forward pass; losses are not held to less noise than these show.
      router: for models that choose tokens, compares the choices at every step.
      report_step: called with the number of each step, from 0.
    """
    training = Backward()

    def before_step(step: int, inputs: Inputs, ours: nnx.Module, models: Models) -> None:
        report_step(step)
        if router is not None and training.later_fault is None:
            fault = router.compare(inputs, ours, models)[0].first_fault
            training.later_fault = (fault, step + 1) if fault else None

    refuse_random_loss(subject.pair, subject.models[subject.dtype], subject.inputs)
    training.weight_steps = steps if subject.dtype == "float64" else min(steps, FLOAT32_STEPS)
    trainer = FlaxTrainer(subject.pair, optimizer, keep_gradients=compared)
    run = train(
        subject.pair,
        subject.models,
        trainer,
        dtype=subject.dtype,
        steps=max(steps, 1),
        weights_after=max(training.weight_steps, 1),
        training=optimizer,
        before_step=before_step,
    )
    training.first_run = run
    runs = [run]
    if compared:
        training.optimizers = trainer.compare_optimizers()
        _judge_optimizers(subject, training, training.optimizers, optimizer)
    _check_tensors(subject, training, runs)
    forward_agrees = all(check.ok for check in outputs)
    if forward_agrees and subject.dtype == "float32" and not _all_ok(training):
        first = training.gradients + training.weights
        runs += _nearby_runs(subject, trainer, max(training.weight_steps, 1), optimizer)
        _check_tensors(subject, training, runs)
        _note_kinks(subject, first, training)
    training.losses = run.losses
    training.loss_checks = _check_losses(subject, run.losses, outputs, explain=_all_ok(training))
    training.gradient_factor = _common_factor(subject, run)
    return training


def _check_tensors(subject: Subject, training: Backward, runs: list[TrainingRuns]) -> None:
    names = names_of_parameters(subject)
    draws = [Draw(run.gradients, run.their_gradients) for run in runs]
    training.gradients = tensor_checks(subject.floor, names, draws, "gradient")
    if not training.weight_steps:
        return
    weights = [Draw(run.weights, run.their_weights) for run in runs]
    training.weights = _weight_checks(subject, names, weights)
    zero = only_rounding(subject.floor, draws[0], names)
    if zero and not all(check.ok and check.undecided is None for check in training.weights):
        training.weights = _weight_checks(subject, [name for name in names if name not in zero], weights)
        subject.notes.append(
            f"{', '.join(zero)}: the gradient is zero but for rounding, as that of a bias in front of a BatchNorm; "
            "its weights after the steps are not compared"
        )


def _weight_checks(subject: Subject, names: list[str], draws: list[Draw]) -> list[Check]:
    return with_shared_noise(subject.floor, tensor_checks(subject.floor, names, draws, "weight"))


def _judge_optimizers(
    subject: Subject, training: Backward, found: OptimizerComparison, optimizer: Training
) -> None:
    """A difference between a user's two optimisers is one of the pair; between two libraries' it is a note."""
    if not found.ok:
        where = f"on the same gradients {found.parameter} differs from update {found.first_difference} on"
        if optimizer.own:
            training.optimizer_divergence = Divergence(OPTIMIZER, where, found.error, "optimizer")
        else:
            why = found.explanation or "no known convention is the whole difference"
            subject.notes.append(
                f"optimizer {optimizer.optimizer}: optax's and torch.optim's differ: {where}, by {found.error:.1e} "
                f"after {found.updates}: {why}. The models were compared with torch.optim's on both sides"
            )
    if found.effects:
        listed = "; ".join(f"{sentence}: {effect:.1e}" for sentence, effect in found.effects)
        subject.notes.append(
            f"optimizer {optimizer.optimizer}: if one side had another convention, the weights would differ after "
            f"{found.updates} updates: {listed}"
        )


def _all_ok(training: Backward) -> bool:
    return all(check.ok for check in [*training.gradients, *training.weights])


def _nearby_runs(
    subject: Subject, trainer: FlaxTrainer, steps: int, optimizer: Training
) -> list[TrainingRuns]:
    """The same run from weights that are a little different, equal on both sides.

    A fault is still there. A ReLU whose input was within rounding of zero is not within rounding of it any more.
    """
    runs = []
    for seed in range(NEARBY_POINTS):
        models = nearby_models(subject, seed)
        trainer.begin_at(loadable_arrays(models[subject.dtype], subject.pair))
        runs.append(
            train(
                subject.pair,
                models,
                trainer,
                dtype=subject.dtype,
                steps=steps,
                weights_after=steps,
                training=optimizer,
            )
        )
    return runs


def _note_kinks(subject: Subject, first: list[Check], training: Backward) -> None:
    """Says which differences were not there at nearby weights."""
    if not _all_ok(training):
        return
    worst = max((check for check in first if not check.ok), key=lambda check: check.error)
    subject.notes.append(
        f"{worst.name}: gradients or weights differ by {worst.error:.1e} at these weights and agree at others nearby: "
        "an input within rounding of a kink, such as a ReLU's zero; float64 shows none of this"
    )


def _check_losses(subject: Subject, losses: Losses, outputs: list[Check], *, explain: bool) -> list[Check]:
    """Of every step at equal weights; in float64 also of every step of the two runs."""
    at_equal_weights, runs = loss_checks(subject.floor, losses, outputs)
    if subject.dtype == "float64":
        return at_equal_weights + runs
    first = next((check for check in runs if not check.ok), None)
    if explain and first and all(check.ok for check in at_equal_weights):
        subject.notes.append(
            f"{first.name}: the two runs have drifted apart (by {first.error:.1e}); at equal weights no loss differs. "
            "In float32 one ReLU that takes the other branch is enough; in float64 runs stay together"
        )
    return at_equal_weights


def _common_factor(subject: Subject, run: TrainingRuns) -> float | None:
    """The number by which every gradient of JAX is PyTorch's; None where there is none, or where it is 1."""
    theirs = run.their_gradients[subject.dtype]
    largest = max(
        (float(np.abs(theirs[k]).max(initial=0.0)) for k in names_of_parameters(subject)), default=0.0
    )
    factors = []
    for name in names_of_parameters(subject):
        a, b = run.gradients[name].astype(np.float64).ravel(), theirs[name].astype(np.float64).ravel()
        if not b.size or np.abs(b).max() <= SMALL_GRADIENT * largest:
            continue
        factor = float(a @ b / (b @ b))
        if not np.isfinite(factor) or np.abs(a - factor * b).max() > LARGEST_TOLERANCE * np.abs(a).max():
            return None
        factors.append(factor)
    if len(factors) < 2 or max(factors) - min(factors) > LARGEST_TOLERANCE * abs(factors[0]):
        return None
    return None if abs(factors[0] - 1) < LARGEST_TOLERANCE else factors[0] or None
