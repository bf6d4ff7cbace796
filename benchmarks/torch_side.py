"""The PyTorch side: torch_reference in eager mode, or compiled by `torch.compile`. Free of JAX."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import einops
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import torch_reference
from benchmarks.problem import Problem
from jaxmodels.benchmark.kinds import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Device, Mode, Precision
from torch_reference.losses import (
    denoising_iters,
    image_from_patches,
    mean_cross_entropy,
    squared_error,
)
from torch_reference.simple_vit import TokenExtractor


class TorchSide:
    """One model, ready to be called again and again.

    Args:
      problem: the model, its sizes and its inputs.
      weights: a safetensors file with PyTorch's names.
      mode: "forward", or "train": one step of AdamW.
      precision: type of the computation; bfloat16 is autocast, so parameters and optimiser stay float32.
      compiled: with `torch.compile`.
      device: "cpu" or "cuda".
    """

    def __init__(
        self,
        problem: Problem,
        weights: Path,
        mode: Mode,
        precision: Precision,
        *,
        compiled: bool,
        device: Device = "cpu",
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.device, self.mode, self.precision = device, mode, precision
        self.problem, self.model = problem, load(problem, weights)
        # Inference needs no gradients, and FlopCounterMode fails on parameters that require them.
        self.model.to(device).train(mode == "train").requires_grad_(mode == "train")
        self.inputs = {name: value.to(device) for name, value in batch(problem).items()}
        function: Any = outputs if mode == "forward" else loss
        if compiled:
            # einops remembers the types that it has seen; a new one during compilation makes PyTorch compile twice.
            for known in (torch.zeros(1), torch.nn.Parameter(torch.zeros(1))):
                einops.rearrange(known, "a -> a")
            function = torch.compile(function)
        self.function = function
        if mode == "train":
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(),
                lr=LEARNING_RATE,
                betas=BETAS,
                eps=EPSILON,
                weight_decay=WEIGHT_DECAY,
                fused=True,
            )

    def __call__(self) -> Tensor:
        """Runs one forward pass or training step to its end; returns the outputs, or the loss before the step."""
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")
        if self.mode == "forward":
            with torch.inference_mode(), autocast:
                value = self.function(self.model, self.inputs, self.problem)
        else:
            with autocast:
                value = self.function(self.model, self.inputs, self.problem)
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            value = value.detach()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return value


def reference(problem: Problem) -> torch.nn.Module:
    """The PyTorch twin of the problem's model, with its initial weights."""
    match problem.model:
        case "glom":
            return torch_reference.Glom(**problem.arguments)
        case "hourglass":
            return torch_reference.HourglassTransformerLM(**problem.arguments)
        case "colt5":
            return torch_reference.ConditionalRoutedViT(**problem.arguments)
        case "mammut":
            assert problem.encoder is not None
            encoder = TokenExtractor(torch_reference.SimpleViT(**problem.encoder))
            return torch_reference.MaMMUT(img_encoder=encoder, **problem.arguments)
        case "scalable_vit":
            return torch_reference.ScalableViT(**problem.arguments)


def load(problem: Problem, weights: Path) -> torch.nn.Module:
    """The twin with the shared weights."""
    model = reference(problem)
    model.load_state_dict(safetensors.torch.load_file(weights))
    return model


def batch(problem: Problem) -> dict[str, Tensor]:
    """The inputs for PyTorch: images are (b, 3, height, width), tokens and labels int64."""
    inputs = {name: torch.from_numpy(np.array(value)) for name, value in problem.inputs.items()}
    for name in ("images", "clean"):
        if name in inputs:
            inputs[name] = inputs[name].permute(0, 3, 1, 2).contiguous()
    for name in ("tokens", "text", "labels"):
        if name in inputs:
            inputs[name] = inputs[name].long()
    return inputs


def outputs(model: torch.nn.Module, inputs: Mapping[str, Tensor], problem: Problem) -> Tensor:
    """The outputs of a forward pass."""
    match problem.model:
        case "glom":
            return model(inputs["images"], iters=problem.iters)
        case "hourglass":
            return model(inputs["tokens"][:, :-1])
        case "mammut":
            return model(inputs["text"], images=inputs["images"])
        case _:
            return model(inputs["images"])


def loss(model: torch.nn.Module, inputs: Mapping[str, Tensor], problem: Problem) -> Tensor:
    """The loss that a training step minimises."""
    match problem.model:
        case "glom":
            top = model(inputs["images"], iters=denoising_iters(problem.arguments["levels"]))[:, :, -1]
            patches, clean = top @ inputs["decoder"], inputs["clean"]
            patch_size = problem.arguments["patch_size"]
            image = image_from_patches(patches, patch_size=patch_size, height=clean.shape[2])
            return squared_error(image, clean).mean()
        case "hourglass":
            return mean_cross_entropy(model(inputs["tokens"][:, :-1]), inputs["tokens"][:, 1:])
        case "mammut":
            return model(inputs["text"], images=inputs["images"], return_loss=True)
        case _:
            return mean_cross_entropy(model(inputs["images"]), inputs["labels"])
