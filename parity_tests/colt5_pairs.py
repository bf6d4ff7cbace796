"""The PyTorch and the JAX model of CoLT5 with the same weights, their inputs, and what the tests read from both."""

from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxmodels as jm
import torch_reference
from parity_tests.cases.colt5 import BASE, Published, published


# Compiled as one program: otherwise JAX compiles every operation for every shape.
forward = jax.jit(lambda model, images, routing=None: model(images, routing))
chosen_by = jax.jit(lambda model, images: model.routing(images))
A = replace(BASE, depth=2)
B = replace(
    A,
    image_size=(16, 8),
    attn_light_window_size=4,
    attn_num_heavy_tokens_q=6,
    attn_num_heavy_tokens_kv=5,
    attn_num_routed_kv=2,
)


def wave(shape: tuple[int, ...], o: int) -> np.ndarray:
    q = np.arange(1, np.prod(shape) + 1)
    return (0.1 * np.sin(0.1 * q + 0.01 * q**2 + o)).reshape(shape)


def image(b: int, height: int = 16, width: int = 12) -> np.ndarray:
    q = np.arange(1, b * 3 * height * width + 1)
    return np.sin(0.3 * q + 0.001 * q**2).reshape(b, 3, height, width)


def channels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def twin(reference: torch.nn.Module, config: jm.ConditionalRoutedViTConfig) -> jm.ConditionalRoutedViT:
    skeleton = nnx.eval_shape(lambda: jm.ConditionalRoutedViT(config, rngs=nnx.Rngs(0)))
    return jm.load_state_dict(skeleton, reference.state_dict())


def golden_pair(
    config: jm.ConditionalRoutedViTConfig, sharpness: float = 1
) -> tuple[torch_reference.ConditionalRoutedViT, jm.ConditionalRoutedViT]:
    """Reference and JAX model in float64, with the weights of the recorded numbers: a formula."""
    reference = torch_reference.ConditionalRoutedViT(**asdict(config)).double()
    with torch.no_grad():
        for o, (key, parameter) in enumerate(reference.state_dict().items()):
            value = wave(tuple(parameter.shape), o)
            value += parameter.ndim == 1 and key.endswith((".weight", ".gamma"))
            value *= sharpness if key.endswith("routing_token") else 1
            parameter.copy_(torch.from_numpy(value))
    return reference, twin(reference, config)


def random_pair(
    config: jm.ConditionalRoutedViTConfig, sharpness: float = 1, seed: int = 0
) -> tuple[torch_reference.ConditionalRoutedViT, jm.ConditionalRoutedViT]:
    torch.manual_seed(seed)
    reference = torch_reference.ConditionalRoutedViT(**asdict(config)).double()
    with torch.no_grad():
        for router in reference.routers:
            router.routing_token.mul_(sharpness)
    return reference, twin(reference, config)


def package(reference: torch.nn.Module, config: jm.ConditionalRoutedViTConfig) -> Published:
    model = published(config).double()
    model.load_state_dict(reference.state_dict())
    return model


def streams(
    reference: torch.nn.Module, ours: jm.ConditionalRoutedViT, x: np.ndarray
) -> list[list[np.ndarray]]:
    """The activations (b, n, d) before the blocks and after every layer, of both models."""
    theirs: list[np.ndarray] = []
    hooks = [reference.transformer.register_forward_pre_hook(lambda _, args: theirs.append(args[0].numpy()))]
    for block in reference.transformer.layers:
        for layer in block:
            hooks.append(layer.register_forward_hook(lambda _m, _args, out: theirs.append(out.numpy())))
    with torch.no_grad():
        reference(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    capture = nnx.capture(lambda model, x: model(x), nnx.Intermediate, method_outputs=nnx.Intermediate)
    captured: Any = jax.jit(lambda model, x: capture(model, x)[1])(ours, channels_last(x))
    tokens = captured["token_norm"]["__call__"][0]
    mine = [np.asarray(tokens + jm.nn.sincos_2d(*tokens.shape[1:], dtype=tokens.dtype))]
    for i in range(ours.config.depth):
        block = captured["transformer"]["blocks"][i]
        mine += [np.asarray(block["attn"]["__call__"][0]), np.asarray(block["ff"]["__call__"][0])]
    return [[s.reshape(len(x), -1, s.shape[-1]) for s in side] for side in (theirs, mine)]


def gradients(
    reference: torch.nn.Module, ours: jm.ConditionalRoutedViT, x: np.ndarray
) -> list[tuple[float, np.ndarray, dict[str, np.ndarray]]]:
    """(loss, gradient of the image, gradients by key) of both models; the loss is Σ logits·cos(m)."""
    img = torch.from_numpy(x).requires_grad_()
    logits = reference(img)
    weights = np.cos(np.arange(logits.numel())).reshape(logits.shape)
    loss = (logits * torch.from_numpy(weights)).sum()
    reference.zero_grad()
    loss.backward()
    theirs = {
        k: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
        for k, p in reference.named_parameters()
    }

    graphdef, params = nnx.split(ours)

    def our_loss(params: nnx.State, images: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, params)(images) * weights)

    value, (params, images) = jax.jit(jax.value_and_grad(our_loss, argnums=(0, 1)))(params, channels_last(x))
    mine = jm.to_state_dict(nnx.merge(graphdef, params))
    return [
        (loss.item(), img.grad.numpy(), theirs),
        (float(value), np.asarray(images).transpose(0, 3, 1, 2), mine),
    ]


def sorted_indices(routed: Any) -> list:
    return [np.sort(np.asarray(r.indices), axis=-1).tolist() for r in routed]


A_LOGITS = [
    [0.0208997396704, 0.0434580144126, -0.10318800216, -0.0520309504378, -0.0813679252302],
    [0.0128439883292, -0.0050079784949, -0.031206274087, 0.000130174627384, -0.0867492613131],
]
README = replace(
    BASE,
    image_size=(16, 8),
    patch_size=2,
    attn_light_window_size=4,
    attn_num_heavy_tokens_q=16,
    attn_num_heavy_tokens_kv=16,
)
