"""The JAX side: a forward pass or a training step as one compiled function of dicts of arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from benchmarks.sizes import Workload, build
from jaxmodels.benchmark.kinds import BETAS, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Mode, Precision
from jaxmodels.convert.core import load_state_dict
from jaxmodels.generation import next_token_loss
from jaxmodels.losses import (
    denoising_iters,
    image_from_patches,
    mean_cross_entropy,
    squared_error,
)
from jaxmodels.models.colt5 import ConditionalRoutedViT
from jaxmodels.models.glom import Glom
from jaxmodels.models.hourglass import HourglassTransformerLM
from jaxmodels.models.mammut import MaMMUT
from jaxmodels.models.scalable_vit import ScalableViT
from jaxmodels.nn import Implementation
from jaxmodels.training.functional_model import FunctionalModel


class JaxSide:
    """One model, ready to be called again and again.

    Args:
      workload: the model and its sizes.
      weights: a safetensors file with PyTorch's names.
      inputs: what `benchmarks.sizes.inputs` returns.
      mode: "forward", or "train": one step of AdamW.
      precision: type of the computation; parameters, optimiser and loss are float32.
      attention: see `jaxmodels.nn.attend`.
    """

    def __init__(
        self,
        workload: Workload,
        weights: Path,
        inputs: Mapping[str, np.ndarray],
        mode: Mode,
        precision: Precision,
        *,
        attention: Implementation = "auto",
    ) -> None:
        dtype = jnp.bfloat16 if precision == "bfloat16" else None

        def make() -> nnx.Module:
            return build(workload, dtype=dtype)

        functional = FunctionalModel(make, attention=attention)
        self.parameters = functional.split(load_state_dict(nnx.eval_shape(make), weights))
        self.inputs = {name: jnp.asarray(value) for name, value in inputs.items()}
        self.mode = mode
        tx = optax.adamw(LEARNING_RATE, *BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
        self.moments = jax.jit(tx.init)(self.parameters) if mode == "train" else None

        def run(parameters: dict[str, Array], inputs: Mapping[str, Array]) -> Array:
            return outputs(functional.merge(parameters), inputs, workload)

        def step(parameters: dict[str, Array], moments: Any, inputs: Mapping[str, Array]) -> tuple:
            value, gradients = jax.value_and_grad(lambda p: loss(functional.merge(p), inputs))(parameters)
            updates, moments = tx.update(gradients, moments, parameters)
            return optax.apply_updates(parameters, updates), moments, value

        self._forward = jax.jit(run)
        self._step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self) -> Array:
        """Runs one forward pass or training step to its end; returns the outputs, or the loss before the step."""
        if self.mode == "forward":
            return jax.block_until_ready(self._forward(self.parameters, self.inputs))
        self.parameters, self.moments, value = self._step(self.parameters, self.moments, self.inputs)
        jax.block_until_ready(self.parameters)
        return value

    def lowered(self) -> Any:
        """The program before compilation."""
        if self.mode == "forward":
            return self._forward.lower(self.parameters, self.inputs)
        return self._step.lower(self.parameters, self.moments, self.inputs)


def outputs(model: Any, inputs: Mapping[str, Array], workload: Workload) -> Array:
    """The outputs of a forward pass."""
    match model:
        case Glom():
            return model(inputs["images"], iters=workload.iters)
        case HourglassTransformerLM():
            return model(inputs["tokens"][:, :-1])
        case MaMMUT():
            return model(inputs["text"], inputs["images"])
        case _:
            return model(inputs["images"])


def loss(model: Any, inputs: Mapping[str, Array]) -> Array:
    """The loss that a training step minimises."""
    match model:
        case Glom():
            top = model(inputs["images"], iters=denoising_iters(model.config.levels))[:, :, -1]
            patches, clean = top @ inputs["decoder"].astype(top.dtype), inputs["clean"]
            patch_size = model.config.patch_size
            image = image_from_patches(patches, patch_size=patch_size, height=clean.shape[1])
            return squared_error(image, clean).mean()
        case HourglassTransformerLM():
            return next_token_loss(model, inputs["tokens"], pad_value=-1)
        case MaMMUT():
            return model.loss(inputs["text"], inputs["images"]).total
        case ConditionalRoutedViT() | ScalableViT():
            return mean_cross_entropy(model(inputs["images"]), inputs["labels"])
        case _:
            raise TypeError(f"no loss for a {type(model).__name__}")
