"""Diagnosis of a difference that only the loss or its gradients show."""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch

from jaxmodels.compare.diagnosis.gradients import candidates_of_two_places, gradient_candidates
from jaxmodels.compare.diagnosis.replay import Change, Replay
from jaxmodels.compare.diagnosis.search import Deadline, Finding, first_that_hold, search
from jaxmodels.compare.diagnosis.variant import number
from jaxmodels.compare.forward import DTYPES
from jaxmodels.compare.noise import LARGEST_TOLERANCE, Check, Draw, DType, relative_error, tensor_checks
from jaxmodels.compare.preparation import Subject, cast, names_of_parameters
from jaxmodels.compare.steps import named_parameters, torch_loss
from jaxmodels.convert.torch_io import to_numpy


SECONDS = 20.0  # for one difference


class FirstStep(NamedTuple):
    """What the first training step has shown.

    Attributes:
      loss: JAX's.
      check: that of the loss; None where losses were not compared.
      gradients: JAX's, by PyTorch's names.
      factor: by which every gradient is PyTorch's, where there is such a number.
    """

    loss: float
    check: Check | None
    gradients: Mapping[str, np.ndarray]
    factor: float | None


def diagnose_loss(subject: Subject, step: FirstStep) -> list[Finding]:
    """The mistakes that explain another loss on equal outputs, and the gradients with it."""
    judge = _Judge(subject, step)
    outside = [one for one in judge.operations if not one.within]
    return search(
        outside, lambda changes: judge.loss_agrees(changes) and judge.agrees(changes), judge.deadline
    )


def diagnose_gradients(subject: Subject, step: FirstStep) -> list[Finding]:
    """The mistakes that explain other gradients of an equal loss."""
    judge = _Judge(subject, step)
    found = first_that_hold(gradient_candidates(judge.operations), judge.agrees, judge.deadline)
    if not found:
        pairs = candidates_of_two_places(judge.operations, judge.gradients, step.gradients, judge.deadline)
        found = first_that_hold(pairs, judge.agrees, judge.deadline)
    if found or step.factor is None:
        return found
    sizes = [size for array in subject.inputs.values() for size in array.shape if size > 1]
    for factor in (step.factor, 1 / step.factor):
        nearest = min(sizes, key=lambda size: abs(size - factor), default=0)
        if nearest and abs(nearest / factor - 1) < 1e-3:
            what = (
                f"JAX's gradients are {number(step.factor)} times PyTorch's: a sum over an axis of {nearest}"
            )
            return [Finding("gradient factor", what, "the mean in place of the sum, or the reverse,", "")]
    return []


class _Judge:
    """Runs PyTorch's loss with changes, and compares it and its gradients with JAX's."""

    def __init__(self, subject: Subject, step: FirstStep) -> None:
        self.subject, self.step = subject, step
        self.deadline = Deadline(SECONDS)
        self.runs = {dtype: _LossRun(subject, dtype) for dtype in DTYPES}
        self.names = names_of_parameters(subject)
        self.operations = self.runs[subject.dtype].replay.operations

    def loss_agrees(self, changes: Mapping[int, Change]) -> bool:
        with torch.no_grad():
            loss = self.runs[self.subject.dtype].replay.result(changes)
        expected = to_numpy(torch.tensor(self.step.loss).to(loss.dtype))
        tolerance = 0.0 if self.step.check is None else self.step.check.tolerance
        return relative_error(to_numpy(loss), expected) <= tolerance

    def gradients(self, changes: Mapping[int, Change]) -> dict[str, np.ndarray]:
        """PyTorch's in the compared type, of the parameters that both sides learn."""
        found = self.runs[self.subject.dtype].gradients(changes)
        return {name: found[name] for name in self.names}

    def agrees(self, changes: Mapping[int, Change]) -> bool:
        """Judges JAX's gradients by PyTorch's changed ones, as the comparison does."""
        compared = self.gradients(changes)
        largest = max((np.abs(compared[name]).max(initial=0.0) for name in self.names), default=0.0)
        for name in self.names:
            if (
                np.abs(self.step.gradients[name] - compared[name]).max(initial=0.0)
                > LARGEST_TOLERANCE * largest
            ):
                return False
        theirs = {
            dtype: compared if dtype == self.subject.dtype else run.gradients(changes)
            for dtype, run in self.runs.items()
        }
        draw = Draw(self.step.gradients, theirs)
        return all(check.ok for check in tensor_checks(self.subject.floor, self.names, [draw], "gradient"))


class _LossRun:
    """PyTorch's loss of the pair, ready to be run again."""

    def __init__(self, subject: Subject, dtype: DType) -> None:
        self.model = copy.deepcopy(subject.models[dtype])
        inputs = cast(subject.inputs, dtype)
        self.call: Callable[[], torch.Tensor] = lambda: torch_loss(
            subject.pair, self.model, inputs, subject.routing_indices
        )
        with torch.enable_grad():
            self.replay = Replay(self.model, self.call, unit="", target=None)

    def gradients(self, changes: Mapping[int, Change]) -> dict[str, np.ndarray]:
        self.model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = self.replay.result(changes)
            if loss.requires_grad:
                loss.backward()
        return {
            name: to_numpy(torch.zeros_like(p) if p.grad is None else p.grad)
            for name, p in named_parameters(self.model)
        }
