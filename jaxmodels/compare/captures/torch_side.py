"""A PyTorch model's run, written to a folder. Needs no JAX."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jaxmodels.compare.calls import PairError, call_model, failures_explained, layer_by_layer
from jaxmodels.compare.captures.files import Capture, Run, check_target, write_capture
from jaxmodels.compare.captures.options import (
    ADAMW,
    Batches,
    Inputs,
    Runs,
    cast,
    check_inputs,
    check_options,
    is_repeated,
    keeper,
    settings,
    versions,
)
from jaxmodels.compare.outputs import ANY_AXES, as_array, mean_square, named_leaves
from jaxmodels.compare.precision import full_precision_in_torch, observe_torch
from jaxmodels.compare.torch_calls import torch_events
from jaxmodels.compare.torch_types import coarser_in_torch
from jaxmodels.convert.table import Entry
from jaxmodels.convert.torch_io import to_numpy, to_torch


def capture_torch(
    model: torch.nn.Module,
    inputs: Inputs,
    path: str | Path,
    *,
    name: str | None = None,
    dtypes: Sequence[str] = ("float32", "float64"),
    call: Callable[..., Any] = call_model,
    loss: Callable[..., Any] | None = None,
    batches: Batches | None = None,
    steps: int = 3,
    learning_rate: float = 1e-3,
    full_precision: bool = True,
    limit: int | None = None,
    table: Sequence[Entry] | None = None,
    output_axes: str | Mapping[str, str] = ANY_AXES,
) -> Path:
    """Runs a PyTorch model in evaluation mode, on the device of its parameters, and writes what it computed.

    Args:
      model: it is copied, not changed.
      inputs: arrays or tensors by name.
      path: the folder, new or an earlier capture.
      name: what reports call the pair; by default the model's class.
      dtypes: the types in which it runs: "float64", "float32", "bfloat16". From float32 and float64 the noise of
        float32 is measured, from all three that of bfloat16 and TF32.
      call: runs the model on the inputs; by default they are passed by name, or in the order of the dict.
      loss: a scalar from the model and the inputs; by default the mean of the squared outputs.
      batches: the inputs of each optimiser step, counted from 0; by default `inputs` at every step.
      steps: how many of AdamW follow the first gradient; with 0 the weights stay.
      learning_rate: of these steps.
      full_precision: whether float32 products are computed with all digits. False keeps the settings in force,
        such as TF32; the capture says which products they make.
      limit: tensors of more numbers are kept as projections; see `jaxmodels.compare.projection`.
      table: which parameters and modules are which of the JAX model's, where that is known here.
      output_axes: einops patterns from PyTorch's outputs to JAX's, as `Pair` takes them.

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
    check_options(dtypes, steps, limit)
    check_target(path)
    side = _TorchRuns(
        call=call,
        loss=loss,
        batches=batches or (lambda step: inputs),
        steps=steps,
        learning_rate=learning_rate,
        keep=keeper(limit),
    )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    capture = Capture(
        name=name or type(model).__name__,
        side="torch",
        device=_described(device),
        versions=versions("torch"),
        settings=settings(steps, learning_rate, limit, output_axes),
        inputs={key: _as_numpy(value) for key, value in inputs.items()},
        modules={path: f"{type(m).__module__}.{type(m).__name__}" for path, m in model.named_modules()},
        learned=[key for key, _ in model.named_parameters(remove_duplicate=False)],
        table=None if table is None else list(table),
    )
    with layer_by_layer(), full_precision_in_torch() if full_precision else nullcontext():
        for dtype in dtypes:
            capture.runs[dtype] = side.run(model, capture.inputs, dtype, device)
    write_capture(capture, path)
    return path


class _TorchRuns(Runs):
    """Runs a model in one type after another."""

    def run(self, model: torch.nn.Module, inputs: Inputs, dtype: str, device: torch.device) -> Run:
        with failures_explained("copying the PyTorch model", "pass one that copy.deepcopy can copy"):
            model = copy.deepcopy(model).eval().to(getattr(torch, dtype))
        run = Run(dtype=dtype, products=_products(device) if dtype == "float32" else {})
        run.weights = {key: self.keep(to_numpy(value)) for key, value in _tensors(model)}
        tensors = _on_device(inputs, dtype, device)
        way_out = (
            "its inputs are those that are given, passed by call; dtypes names the types in which it runs"
        )
        with torch.no_grad(), failures_explained(f"the PyTorch model, run in {dtype},", way_out):
            result, run.events = torch_events(model, lambda: self.call(model, tensors), self.keep)
            outputs = _outputs(result)
            again = _outputs(self.call(model, _on_device(inputs, dtype, device)))
        if not is_repeated(outputs, again, dtype):
            raise PairError(
                "the PyTorch model returns other values when it runs a second time on the same inputs, although it is "
                "in evaluation mode: a random function, or state that a call changes; switch it off first"
            )
        run.outputs = {key: self.keep(value) for key, value in outputs.items()}
        if dtype == "float64":
            run.coarser = coarser_in_torch(lambda: self.call(model, _on_device(inputs, dtype, device)))
        self._train(model, run, dtype, device)
        return run

    def _train(self, model: torch.nn.Module, run: Run, dtype: str, device: torch.device) -> None:
        """Adds losses, the first gradient and the weights after the steps.

        AdamW computes in float64, so that only the model's own rounding is seen.
        """
        parameters = [p for p in model.parameters() if p.is_floating_point() or p.is_complex()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        masters = [
            p.detach().to(torch.complex128 if p.is_complex() else torch.float64).clone() for p in parameters
        ]
        options: dict[str, Any] = {key: ADAMW[key] for key in ("eps", "weight_decay")}
        options |= {"lr": self.learning_rate, "betas": (ADAMW["b1"], ADAMW["b2"])}
        optimizer = torch.optim.AdamW(masters, **options) if masters else None
        for step in range(max(self.steps, 1)):
            model.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = self._loss(model, _on_device(_as_arrays(self.batches(step)), dtype, device))
                if loss is None:
                    run.notes.append(
                        "no output is floating-point, so no gradient was captured; loss gives one"
                    )
                    return
                if loss.requires_grad:  # otherwise no parameter takes part
                    loss.backward()
            run.losses.append(float(loss.detach()))
            if step == 0:
                run.gradients = {key: self.keep(_gradient(p)) for key, p in _learned(model)}
            if self.steps == 0 or optimizer is None:
                return
            _update(optimizer, parameters, masters)
        run.weights_after = {key: self.keep(to_numpy(p)) for key, p in _learned(model)}

    def _loss(self, model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
        with failures_explained(
            "the loss in PyTorch", "loss gets the model and the inputs, and returns a scalar"
        ):
            loss = mean_square(self.call(model, tensors)) if self.loss is None else self.loss(model, tensors)
        if self.loss is None and not isinstance(loss, torch.Tensor):
            return None
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise PairError(f"loss must return a scalar tensor; got {got}: take a mean or a sum")
        return loss.reshape(())


def _update(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], masters: list[torch.Tensor]
) -> None:
    with torch.no_grad():
        for parameter, master in zip(parameters, masters, strict=True):
            # One that takes no part has no gradient here, and a zero one in JAX.
            master.grad = torch.zeros_like(master)
            if parameter.grad is not None:
                master.grad.copy_(parameter.grad)
        optimizer.step()
        for parameter, master in zip(parameters, masters, strict=True):
            parameter.copy_(master)


def _tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """All parameters and buffers of the state_dict, under all of their names."""
    return [(key, value) for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)]


def _learned(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def _gradient(parameter: torch.nn.Parameter) -> np.ndarray:
    return to_numpy(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def _outputs(result: Any) -> dict[str, np.ndarray]:
    return {key: as_array(leaf) for key, leaf in named_leaves(result).items()}


def _as_numpy(value: Any) -> np.ndarray:
    return to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value)


def _as_arrays(inputs: Inputs) -> dict[str, np.ndarray]:
    return {key: _as_numpy(value) for key, value in inputs.items()}


def _on_device(inputs: Inputs, dtype: str, device: torch.device) -> dict[str, torch.Tensor]:
    return {key: to_torch(cast(value, dtype)).to(device) for key, value in inputs.items()}


def _products(device: torch.device) -> dict[str, float]:
    return {kind: observe_torch(device, kind) for kind in ("matmul", "convolution")}


def _described(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
