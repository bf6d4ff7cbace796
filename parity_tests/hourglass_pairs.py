"""The PyTorch and the JAX Hourglass Transformer with the same weights, their inputs, and a call of both."""

from dataclasses import asdict

import hourglass_transformer_pytorch as package
import jax
import numpy as np
import torch
from flax import nnx

import jaxmodels as jm
import torch_reference
from jaxmodels.generation import next_token_loss
from parity_tests.cases.hourglass import BARE, LM  # the import also repairs the package's missing `math`


SIZES = {"num_tokens": 11, "dim": 8, "max_seq_len": 16, "heads": 2, "dim_head": 4}
H1 = {"depth": (1, (1, 2, 1), 1), "shorten_factor": (2, 3)}
H4 = {"depth": (1, 1, 1), "shorten_factor": 3, "causal": False}


def fill(model: torch.nn.Module, offset: int = 0) -> torch.nn.Module:
    """Sets the weights of the recorded numbers, in float64."""
    with torch.no_grad():
        for k, (name, p) in enumerate(model.double().named_parameters()):
            i = torch.arange(1, p.numel() + 1)
            wave = 0.3 * torch.sin(0.1 * (i * i).double() + k + offset)
            p.copy_((wave + name.endswith(("norm.weight", "norm_out.weight"))).view_as(p))
    return model


def ids(b: int, n: int, v: int = 11, low: int = 0) -> np.ndarray:
    j = np.arange(b * n)
    return (low + (7 * j * j + 3 * j + 1) % (v - low)).reshape(b, n)


def golden_pair(offset: int = 0, **changes) -> tuple[torch.nn.Module, nnx.Module]:
    reference = fill(torch_reference.HourglassTransformerLM(**SIZES, **changes), offset)
    return reference, ours_with(jm.HourglassTransformerLMConfig(**SIZES, **changes), reference)


def ours_with(config, reference: torch.nn.Module) -> nnx.Module:
    cls = {
        jm.HourglassTransformerLMConfig: jm.HourglassTransformerLM,
        jm.HourglassTransformerConfig: jm.HourglassTransformer,
    }[type(config)]
    return jm.load_state_dict(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))), reference.state_dict())


loss_and_gradients = jax.jit(jax.value_and_grad(next_token_loss))


@jax.jit
def forward(model: nnx.Module, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    return model(x, mask)


def outputs(reference: torch.nn.Module, ours: nnx.Module, x: np.ndarray, mask: np.ndarray | None = None):
    theirs = reference(torch.from_numpy(x), mask=None if mask is None else torch.from_numpy(mask))
    return theirs.detach().numpy(), np.asarray(forward(ours, x, mask))


LAYOUTS = [
    replaced
    for base, changes in (
        (LM, {"depth": (1, (1, 1, 0), 2), "shorten_factor": (2, 3), "updown_sample_type": "linear"}),
        (LM, {"depth": 2, "shorten_factor": None}),
        (LM, {"depth": (2, 0, 0), "attn_resampling": False}),
        (BARE, {"depth": (1, (0, 1, 1), 1), "norm_out": True}),
    )
    for replaced in [type(base)(**asdict(base) | changes)]
]


def builders(config):
    """What builds the JAX model, its twin and the package's for one configuration."""
    name = type(config).__name__.removesuffix("Config")
    return (
        lambda seed=0: getattr(jm, name)(config, rngs=nnx.Rngs(seed)),
        lambda: getattr(torch_reference, name)(**asdict(config)),
        lambda: getattr(package, name)(**asdict(config)),
    )
