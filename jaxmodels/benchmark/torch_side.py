"""The PyTorch side as a call to be timed, eager or compiled by `torch.compile`. Free of JAX."""

from collections.abc import Callable, Mapping
from typing import Any

import einops
import torch

from jaxmodels.benchmark.kinds import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Device, Mode, Precision
from jaxmodels.compare.calls import arguments, call_model
from jaxmodels.compare.outputs import mean_square
from jaxmodels.convert.torch_io import to_torch


class TorchSide:
    """One model, ready to be called again and again.

    Args:
      model: in evaluation mode; it is changed by training steps.
      inputs: arrays or tensors.
      mode: "forward", or "train": one step of AdamW.
      precision: type of the computation; bfloat16 is autocast, so parameters and optimiser stay float32.
      call: runs the model on the inputs.
      loss: a scalar from the model and the inputs; by default the mean of the squared outputs.
      compiled: with `torch.compile`: the call, or in training the loss where there is one.
      device: "cpu" or "cuda".
    """

    def __init__(
        self,
        model: torch.nn.Module,
        inputs: Mapping[str, Any],
        mode: Mode,
        precision: Precision = "float32",
        *,
        call: Callable[..., Any] = call_model,
        loss: Callable[..., Any] | None = None,
        compiled: bool,
        device: Device = "cpu",
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.device, self.mode, self.precision = device, mode, precision
        # Inference needs no gradients, and FlopCounterMode fails on parameters that require them.
        self.model = model.to(device)
        if mode == "forward":
            self.model.requires_grad_(False)
        tensors = {name: value.to(device) for name, value in as_tensors(inputs).items()}
        if compiled:
            # einops remembers the types that it has seen; a new one during compilation makes PyTorch compile twice.
            for known in (torch.zeros(1), torch.nn.Parameter(torch.zeros(1))):
                einops.rearrange(known, "a -> a")
        self.function = _function(self.model, tensors, mode, call, loss, compiled=compiled)
        if mode == "train":
            self.optimizer = torch.optim.AdamW(
                [parameter for parameter in self.model.parameters() if parameter.requires_grad],
                lr=LEARNING_RATE,
                betas=BETAS,
                eps=EPSILON,
                weight_decay=WEIGHT_DECAY,
                fused=True,
            )

    def __call__(self) -> Any:
        """Runs one forward pass or training step to its end; returns the outputs, or the loss before the step."""
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")
        if self.mode == "forward":
            with torch.inference_mode(), autocast:
                value = self.function()
        else:
            with autocast:
                value = self.function()
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            value = value.detach()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return value


def as_tensors(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The inputs as tensors, floating-point ones in float32; they share no memory with arrays."""
    tensors = {
        name: value if isinstance(value, torch.Tensor) else to_torch(value) for name, value in inputs.items()
    }
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _function(
    model: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    mode: Mode,
    call: Callable[..., Any],
    loss: Callable[..., Any] | None,
    *,
    compiled: bool,
) -> Callable[[], Any]:
    """The outputs or the loss. Which input is which argument is found before anything is compiled."""
    build = torch.compile if compiled else lambda function: function
    if mode == "train" and loss is not None:
        scalar = build(loss)
        return lambda: scalar(model, inputs).reshape(())
    if call is call_model:
        args, kwargs = arguments(model, inputs)
        plain = build(lambda model, args, kwargs: model(*args, **kwargs))

        def outputs() -> Any:
            return plain(model, args, kwargs)
    else:
        custom = build(call)

        def outputs() -> Any:
            return custom(model, inputs)

    return outputs if mode == "forward" else lambda: mean_square(outputs())
