"""The PyTorch side of a cell: torch_reference in eager mode, compiled by `torch.compile`, or through torchax."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import torch_reference
from benchmarks.sizes import Mode, Precision, Workload
from jaxmodels.models.glom import GlomConfig
from jaxmodels.models.hourglass import HourglassTransformerLMConfig
from jaxmodels.models.mammut import MaMMUTConfig
from torch_reference.simple_vit import TokenExtractor


LEARNING_RATE = 1e-4


class TorchSide:
    """One model, ready to be called again and again; arguments as for `JaxSide`.

    Args:
      compiled: with `torch.compile`.
      device: "cpu" or "cuda".
    """

    def __init__(
        self,
        workload: Workload,
        weights: Path,
        inputs: Mapping[str, np.ndarray],
        mode: Mode,
        precision: Precision,
        *,
        compiled: bool,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.device, self.mode, self.precision = device, mode, precision
        self.model = reference(workload)
        self.model.load_state_dict(safetensors.torch.load_file(weights))
        # Inference needs no gradients, and PyTorch's counter of FLOP fails on parameters that ask for them.
        self.model.to(device).train(mode == "train").requires_grad_(mode == "train")
        self.inputs = {name: torch.from_numpy(np.array(value)).to(device) for name, value in inputs.items()}
        for name in ("images", "clean"):
            if name in self.inputs:
                self.inputs[name] = self.inputs[name].permute(0, 3, 1, 2).contiguous()
        for name in ("tokens", "text", "labels"):
            if name in self.inputs:
                self.inputs[name] = self.inputs[name].long()
        function: Any = _outputs if mode == "forward" else _loss
        self.function = torch.compile(function) if compiled else function
        self.workload = workload
        if mode == "train":
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(),
                lr=LEARNING_RATE,
                betas=(0.9, 0.999),
                eps=1e-8,
                weight_decay=1e-2,
                fused=True,
            )

    def __call__(self) -> Tensor:
        """One forward pass or training step, waited for: the outputs, or the loss before the step."""
        narrow = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")
        if self.mode == "forward":
            with torch.inference_mode(), narrow:
                value = self.function(self.model, self.inputs, self.workload)
        else:
            with narrow:
                value = self.function(self.model, self.inputs, self.workload)
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            value = value.detach()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return value


def reference(workload: Workload) -> torch.nn.Module:
    """A fresh twin of the workload's model."""
    arguments = asdict(workload.config)
    match workload.config:
        case GlomConfig():
            return torch_reference.Glom(**arguments)
        case HourglassTransformerLMConfig():
            return torch_reference.HourglassTransformerLM(**arguments)
        case MaMMUTConfig():
            assert workload.encoder is not None
            encoder = TokenExtractor(torch_reference.SimpleViT(**asdict(workload.encoder)))
            return torch_reference.MaMMUT(img_encoder=encoder, **arguments)
        case config:
            return getattr(torch_reference, type(config).__name__.removesuffix("Config"))(**arguments)


def _outputs(model: torch.nn.Module, inputs: Mapping[str, Tensor], workload: Workload) -> Tensor:
    match workload.config:
        case GlomConfig():
            return model(inputs["images"], iters=workload.iters)
        case HourglassTransformerLMConfig():
            return model(inputs["tokens"][:, :-1])
        case MaMMUTConfig():
            return model(inputs["text"], images=inputs["images"])
        case _:
            return model(inputs["images"])


def _loss(model: torch.nn.Module, inputs: Mapping[str, Tensor], workload: Workload) -> Tensor:
    match workload.config:
        case GlomConfig() as config:
            top = model(inputs["images"], iters=config.levels + 1)[:, :, -1]
            p = config.patch_size
            b, c, height, width = inputs["clean"].shape
            clean = inputs["clean"].reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
            patches = top @ inputs["decoder"]
            return (patches.float() - clean.reshape(patches.shape)).square().mean()
        case HourglassTransformerLMConfig():
            logits = model(inputs["tokens"][:, :-1])
            return F.cross_entropy(logits.flatten(0, 1), inputs["tokens"][:, 1:].flatten())
        case MaMMUTConfig():
            return model(inputs["text"], images=inputs["images"], return_loss=True)
        case _:
            return F.cross_entropy(model(inputs["images"]), inputs["labels"])
