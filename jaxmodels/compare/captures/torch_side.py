"""A PyTorch model's run, written to a folder. Needs no JAX."""

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jaxmodels.compare.calls import PairError, failures_explained, layer_by_layer
from jaxmodels.compare.captures.files import Capture, Run, check_target, write_capture
from jaxmodels.compare.captures.operations import OperationRecorder
from jaxmodels.compare.captures.options import (
    Inputs,
    Options,
    batch_of,
    cast,
    check_inputs,
    dropout_note,
    is_repeated,
    options_from,
    require_outputs,
    versions,
)
from jaxmodels.compare.captures.routes import Indices, repeated, routes_of
from jaxmodels.compare.outputs import as_array, mean_square, named_leaves
from jaxmodels.compare.precision import full_precision_in_torch, observe_torch
from jaxmodels.compare.torch_calls import torch_events
from jaxmodels.compare.torch_mode import restore_statistics, statistics_of, without_dropout
from jaxmodels.compare.torch_optimizers import TorchOptimizer
from jaxmodels.compare.torch_types import coarser_in_torch
from jaxmodels.convert.torch_io import to_numpy, to_torch


RECORDED = (
    "float32",
    "float64",
)  # what a coarser type computes is too far off to tell one mistake from another


def capture_torch(model: torch.nn.Module, inputs: Inputs, path: str | Path, **options: Any) -> Path:
    """Runs a PyTorch model on the device of its parameters, and writes what it computed.

    Args:
      model: it is copied, not changed.
      inputs: arrays or tensors by name.
      path: the folder, new or an earlier capture.
      options: the fields of `jaxmodels.compare.captures.Options`.

    Returns:
      The folder.

    Raises:
      ValueError: a wrong argument, or a model that fails or is random.
      OSError: the folder cannot be written.
    """
    path = Path(path)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got a {type(model).__name__}")
    check_inputs(inputs)
    chosen = options_from(Options, options, "capture_torch")
    check_target(path)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    capture = Capture(
        name=chosen.name or type(model).__name__,
        side="torch",
        device=_described(device),
        versions=versions("torch"),
        settings=chosen.settings,
        inputs=_as_arrays(inputs),
        modules={path: f"{type(m).__module__}.{type(m).__name__}" for path, m in model.named_modules()},
        learned=[key for key, _ in model.named_parameters(remove_duplicate=False)],
        table=None if chosen.table is None else list(chosen.table),
    )
    choices: dict[str, Indices] = {}  # of the first run; the others repeat them
    with layer_by_layer(), full_precision_in_torch() if chosen.full_precision else nullcontext():
        for dtype in chosen.dtypes:
            capture.runs[dtype] = _TorchRun(model, capture, chosen, dtype, device, choices).complete()
    write_capture(capture, path)
    return path


class _TorchRun:
    """A copy of a model in one type, and what it computes."""

    def __init__(
        self,
        model: torch.nn.Module,
        capture: Capture,
        options: Options,
        dtype: str,
        device: torch.device,
        choices: dict[str, Indices],
    ) -> None:
        self.inputs, self.options, self.dtype = capture.inputs, options, dtype
        self.device, self.choices, self.keep = device, choices, options.keep
        with failures_explained("copying the PyTorch model", "pass one that copy.deepcopy can copy"):
            self.model = copy.deepcopy(model).train(options.mode == "train").to(getattr(torch, dtype))
        self.run = Run(dtype=dtype, products=_products(device) if dtype == "float32" else {})
        if options.mode == "train":
            silent = [path for path, module in self.model.named_modules() if without_dropout(module)]
            self.run.notes += dropout_note(silent)

    def complete(self) -> Run:
        """The forward pass and the training steps."""
        self.run.weights = {key: self.keep(to_numpy(value)) for key, value in _tensors(self.model)}
        self._forward()
        if self.dtype == "float64":
            call = lambda: self._call(self._tensors(), self.forward_route)  # noqa: E731
            self.run.coarser = coarser_in_torch(lambda: self._unchanged(call))
        self._train()
        return self.run

    def _forward(self) -> None:
        way_out = (
            "its inputs are those that are given, passed by call; dtypes names the types in which it runs"
        )
        with torch.no_grad(), failures_explained(f"the PyTorch model, run in {self.dtype},", way_out):
            tensors = self._tensors()
            self.forward_route = route = self._route("forward", tensors)
            before = statistics_of(self.model)
            result, self.run.events = torch_events(self.model, lambda: self._call(tensors, route), self.keep)
            if self.options.mode == "train":
                self._keep_statistics(before)
            outputs = _outputs(result)
            require_outputs(outputs)
            again = _outputs(
                self._unchanged(lambda: self._recorded("forward", self._tensors(), self._call, route))
            )
        if not is_repeated(outputs, again, self.dtype):
            mode = "in evaluation mode" if self.options.mode == "eval" else "without dropout"
            raise PairError(
                "the PyTorch model returns other values when it runs a second time on the same inputs, although it is "
                f"{mode}: a random function, or state that a call changes; switch it off first"
            )
        self.run.outputs = {key: self.keep(value) for key, value in outputs.items()}

    def _call(self, tensors: dict[str, torch.Tensor], route: Mapping[str, Any]) -> Any:
        return self.options.call(self.model, tensors, **route)

    def _unchanged(self, function: Callable[[], Any]) -> Any:
        """What a function returns; in training mode the buffers that it changes are put back."""
        before = statistics_of(self.model)
        try:
            return function()
        finally:
            if self.options.mode == "train":
                restore_statistics(self.model, before)

    def _keep_statistics(self, before: Mapping[str, torch.Tensor]) -> None:
        """The buffers after a forward pass, which are then put back, and how many values each BatchNorm saw."""
        self.run.statistics = {
            name: self.keep(to_numpy(buffer))
            for name, buffer in self.model.named_buffers()
            if buffer.is_floating_point()
        }
        restore_statistics(self.model, before)
        sizes = {
            event.path: event.arrays[0].size
            for event in self.run.events
            if event.kind == "input" and event.arrays
        }
        for path, module in self.model.named_modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and path in sizes:
                self.run.batch_norms[path] = (module.momentum, sizes[path] // module.num_features)

    def _route(self, where: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """What the routers choose, as an argument of the model; kept with the run."""
        routing = self.options.routing
        if routing is None:
            return {}
        with torch.no_grad(), failures_explained("routing", "it gets the model and the inputs"):
            routed = self._unchanged(lambda: routing(self.model, tensors))
        found = routes_of(routed, self.options.routers, to_numpy)
        self.run.routing |= {f"{where}/{key}": value for key, value in found.items()}
        indices = self.choices.setdefault(where, repeated(found, len(self.options.routers)))
        return {
            "routing": [None if one is None else torch.from_numpy(one).to(self.device) for one in indices]
        }

    def _recorded(
        self, name: str, tensors: dict[str, torch.Tensor], call: Callable[..., Any], *args: Any
    ) -> Any:
        """Runs the model, and keeps its operations for the diagnosis of a difference."""
        if self.dtype not in RECORDED:
            return _directly(tensors, call, *args)
        are_inputs = name == "forward" or self.options.batches is None
        recorder = OperationRecorder(self.model, tensors if are_inputs else {}, name)
        result = recorder.run(lambda: call(tensors, *args))
        self.run.operations[name] = recorder.content(named_leaves(result))
        self.run.constants |= {key: self.keep(value) for key, value in recorder.constants.items()}
        return result

    def _train(self) -> None:
        """Adds losses, the first gradient and the weights after the steps.

        The optimiser computes in float64, so that only the model's own rounding is seen.
        """
        model, run, steps = self.model, self.run, self.options.steps
        parameters = {
            key: p for key, p in model.named_parameters() if p.is_floating_point() or p.is_complex()
        }
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        masters = {key: _in_float64(p) for key, p in parameters.items()}
        optimizer = TorchOptimizer(self.options.optimizer, masters) if masters and steps else None
        for step in range(max(steps, 1)):
            loss = self._loss(step)
            if loss is None:
                run.notes.append("no output is floating-point, so no gradient was captured; loss gives one")
                return
            if step == 0:
                run.gradients = {key: self.keep(_gradient(p)) for key, p in _learned(model)}
            if optimizer is None:
                return
            # One that takes no part has no gradient here, and a zero one in JAX.
            optimizer.step(
                {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in parameters.items()}
            )
            with torch.no_grad():
                for key, parameter in parameters.items():
                    parameter.copy_(masters[key])
        run.weights_after = {key: self.keep(to_numpy(p)) for key, p in _learned(model)}

    def _loss(self, step: int) -> torch.Tensor | None:
        """The loss of a step, and its gradients at the parameters; None where there is nothing to differentiate."""
        self.model.zero_grad(set_to_none=True)
        tensors = self._tensors(_as_arrays(batch_of(self.options, self.inputs, step)))
        route = self._route(f"step {step + 1}", tensors)

        def differentiated() -> torch.Tensor | None:
            compute = partial(self._recorded, "loss") if step == 0 else _directly
            loss = compute(tensors, self._loss_of, route)
            if loss is not None and loss.requires_grad:  # otherwise no parameter takes part
                loss.backward()
            return loss

        with torch.enable_grad():
            loss = self._unchanged(differentiated)
        if loss is not None:
            self.run.losses.append(float(loss.detach()))
        return loss

    def _loss_of(self, tensors: dict[str, torch.Tensor], route: Mapping[str, Any]) -> torch.Tensor | None:
        own = self.options.loss
        with failures_explained(
            "the loss in PyTorch", "loss gets the model and the inputs, and returns a scalar"
        ):
            loss = (
                mean_square(self._call(tensors, route)) if own is None else own(self.model, tensors, **route)
            )
        if own is None and not isinstance(loss, torch.Tensor):
            return None
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise PairError(f"loss must return a scalar tensor; got {got}: take a mean or a sum")
        return loss.reshape(())

    def _tensors(self, inputs: Inputs | None = None) -> dict[str, torch.Tensor]:
        """New tensors of the inputs, in the type and on the device of the model."""
        inputs = self.inputs if inputs is None else inputs
        return {key: to_torch(cast(value, self.dtype)).to(self.device) for key, value in inputs.items()}


def _directly(tensors: dict[str, torch.Tensor], call: Callable[..., Any], *args: Any) -> Any:
    return call(tensors, *args)


def _in_float64(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().to(torch.complex128 if parameter.is_complex() else torch.float64).clone()


def _tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """All parameters and buffers of the state_dict, under all of their names."""
    return [(key, value) for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)]


def _learned(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def _gradient(parameter: torch.nn.Parameter) -> np.ndarray:
    return to_numpy(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def _outputs(result: Any) -> dict[str, np.ndarray]:
    return {key: as_array(leaf) for key, leaf in named_leaves(result).items()}


def _as_arrays(inputs: Inputs) -> dict[str, np.ndarray]:
    return {
        key: to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)
        for key, value in inputs.items()
    }


def _products(device: torch.device) -> dict[str, float]:
    return {kind: observe_torch(device, kind) for kind in ("matmul", "convolution")}


def _described(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
