"""The recorded operations of a capture, run again. Needs PyTorch, and neither the model nor JAX."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree

from jaxmodels.compare.captures.files import Run
from jaxmodels.compare.captures.operations import IN_PLACE, WITHOUT_GRADIENT, decoded, function_of
from jaxmodels.compare.captures.options import cast
from jaxmodels.compare.diagnosis.replay import Change, Operation
from jaxmodels.compare.layers import Key
from jaxmodels.compare.projection import is_projection
from jaxmodels.convert.torch_io import to_numpy, to_torch


class _Step(NamedTuple):
    """An operation: its name and function, encoded arguments, the numbers of its tensors, and what is special."""

    name: str | None
    function: Callable[..., Any]
    args: Any
    kwargs: Any
    gets: frozenset[int]
    returns: list[int]
    flags: list[str]


class _Event(NamedTuple):
    key: Key
    tensors: list[int]


Values = dict[int, torch.Tensor]


class Recording:
    """A run of PyTorch that can be run again.

    Args:
      content: what `OperationRecorder.content` returned.
      run: has the weights and constants.
      inputs: of the capture, by name.

    Raises:
      ValueError: an unknown function, or a tensor that was kept as a projection.
    """

    def __init__(self, content: Mapping[str, Any], run: Run, inputs: Mapping[str, np.ndarray]) -> None:
        if content["problem"]:
            raise ValueError(content["problem"])
        self.steps = [_step(one) for one in content["steps"]]
        self.results: list[int | None] = content["results"]
        self.names = {int(number): name for number, name in content["sources"].items()}
        arrays = {f"inputs/{key}": cast(value, run.dtype) for key, value in inputs.items()}
        arrays |= {f"weights/{key}": value for key, value in run.weights.items()}
        arrays |= {f"constants/{key}": value for key, value in run.constants.items()}
        large = [name for name in self.names.values() if is_projection(arrays[name])]
        if large:
            raise ValueError(f"{large[0]} was kept as a projection")
        self.sources = {number: to_torch(arrays[name]) for number, name in self.names.items()}
        self.has_changes_in_place = any(IN_PLACE in one.flags for one in self.steps if isinstance(one, _Step))
        with torch.no_grad():
            self.values = self.run({}, len(self.steps))

    def run(self, changes: Mapping[int, Change], end: int) -> Values:
        """All tensors after the steps before `end`. Of a run without gradients only what a change concerns runs again.

        Raises:
          Exception: whatever a change that does not fit raises.
        """
        again = self.has_changes_in_place or not hasattr(self, "values")
        values = {number: one.clone() for number, one in self.sources.items()} if again else dict(self.values)
        self._continue(values, changes, end, again=again)
        return values

    def gradients(self, changes: Mapping[int, Change], learned: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of the first result with respect to the weights of these names."""
        names = {number: self.names[number].removeprefix("weights/") for number in self.sources}
        values = {
            number: one.clone().requires_grad_(names[number] in learned and one.is_floating_point())
            for number, one in self.sources.items()
        }
        sources = dict(values)
        with torch.enable_grad():
            self._continue(values, changes, len(self.steps), again=True)
            loss = values[self.results[0] or 0]
            if loss.requires_grad:
                loss.reshape(()).backward()
        return {
            names[number]: to_numpy(torch.zeros_like(one) if one.grad is None else one.grad)
            for number, one in sources.items()
            if one.requires_grad
        }

    def _continue(self, values: Values, changes: Mapping[int, Change], end: int, *, again: bool) -> None:
        new: set[int] = set()
        for position, step in enumerate(self.steps[:end]):
            change = changes.get(position)
            if isinstance(step, _Event) or not (again or change or step.gets & new):
                continue
            args, kwargs = decoded(step.args, values.__getitem__), decoded(step.kwargs, values.__getitem__)
            with torch.no_grad() if WITHOUT_GRADIENT in step.flags else nullcontext():
                result = (
                    step.function(*args, **kwargs)
                    if change is None
                    else change(step.function, *args, **kwargs)
                )
            tensors = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            values |= zip(step.returns, tensors, strict=True)
            new |= set(step.returns)


class RecordedReplay:
    """What `diagnosis.replay.Replay` is to a model, for a recording; an operation's index is its step.

    Args:
      recording: the run.
      unit: path of the module whose last call before the target is looked at; "" is the whole run.
      target: the event at which it ends; None for the results.
    """

    def __init__(self, recording: Recording, *, unit: str, target: Key | None) -> None:
        self.recording = recording
        steps = recording.steps
        self.end = len(steps)
        self.numbers = [one for one in recording.results if one is not None]
        if target is not None:
            ends = ((i, one) for i, one in enumerate(steps) if isinstance(one, _Event) and one.key == target)
            self.end, event = next(ends)
            self.numbers = event.tensors
        self.operations: list[Operation] = []
        self.times: dict[Key, int] = {}
        running: list[tuple[str, int]] = []
        last: Key | None = None
        for position, step in enumerate(steps[: self.end]):
            if isinstance(step, _Event):
                if step.key[2] == "output":
                    running.pop()
                elif step.key[0] == unit and unit:
                    self.operations = []
                last, self.times[step.key] = step.key, len(self.times)
                if step.key[2] == "input":
                    running.append(step.key[:2])
            elif step.name is not None:
                args, kwargs = (
                    decoded(one, recording.values.__getitem__) for one in (step.args, step.kwargs)
                )
                place = tuple(running), last, len(self.times)
                self.operations.append(Operation(position, step.name, step.function, args, kwargs, *place))
        self.arrays = self.run({})

    def run(self, changes: Mapping[int, Change]) -> tuple[np.ndarray, ...]:
        """The arrays at the target when operations are changed, by their index."""
        values = self.recording.run(changes, self.end)
        return tuple(to_numpy(values[number]) for number in self.numbers)


def _step(content: Sequence[Any]) -> _Step | _Event:
    kind, *rest = content
    if kind == "event":
        path, call, what, tensors = rest
        return _Event((path, call, what), tensors)
    name, function, args, kwargs, returns, flags = rest
    return _Step(
        name, function_of(function), args, kwargs, frozenset(_numbers([args, kwargs])), returns, flags
    )


def _numbers(value: Any) -> list[int]:
    """Those of the tensors in encoded arguments."""
    if isinstance(value, list):
        return [number for one in value for number in _numbers(one)]
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "tensor":
            return [content]
        return _numbers([one for _, one in content] if kind == "dict" else content)
    return []
