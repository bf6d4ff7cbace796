"""`jaxmodels.losses` beside `torch_reference.losses`: values and gradients in float64."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import torch_reference.losses
from jaxmodels import losses


RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(2, 5, 7))
LABELS = RNG.integers(0, 7, (2, 5))
TEXT, IMAGE = RNG.normal(size=(2, 6, 4))
PATCHES = RNG.normal(size=(2, 6, 4 * 4 * 3))
CLEAN = RNG.normal(size=(2, 8, 12, 3))


def check(name: str, arrays: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> None:
    """The same values on both sides, and the same gradients of their weighted sum."""
    theirs: Callable[..., torch.Tensor] = getattr(torch_reference.losses, name)
    ours: Callable[..., jax.Array] = getattr(losses, name)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}
    differentiable = {
        key: value.requires_grad_() for key, value in tensors.items() if value.is_floating_point()
    }

    expected = theirs(**tensors, **arguments)
    weights = np.random.default_rng(1).normal(size=expected.shape)
    (expected * torch.from_numpy(np.array(weights))).sum().backward()
    given = {key: jnp.asarray(value) for key, value in arrays.items()}

    @jax.jit
    def run(floating: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        result, back = jax.vjp(lambda floating: ours(**{**given, **floating}, **arguments), floating)
        return result, back(weights)[0]

    actual, gradients = run({key: given[key] for key in differentiable})

    assert actual.dtype == jnp.float64
    np.testing.assert_allclose(actual, expected.detach(), rtol=1e-12, atol=1e-12)
    for key, value in differentiable.items():
        np.testing.assert_allclose(gradients[key], value.grad, rtol=1e-12, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", ["cross_entropy", "mean_cross_entropy"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignored", [None, 3, -1, 9])
def test_cross_entropy(name: str, label_smoothing: float, ignored: int | None) -> None:
    """An ignored label may lie inside the classes, below or above them."""
    labels = LABELS if ignored is None else np.where(RNG.random(LABELS.shape) < 0.4, ignored, LABELS)
    arguments = {"ignored": ignored, "label_smoothing": label_smoothing}
    check(name, {"logits": LOGITS, "labels": labels}, arguments)


def test_contrastive_loss() -> None:
    check("contrastive_loss", {"text": TEXT, "image": IMAGE, "temperature": np.array([0.7])}, {})


def test_denoising() -> None:
    """Images are channels first in PyTorch."""
    sizes = {"patch_size": 4, "height": 8}
    theirs = torch_reference.losses.image_from_patches(torch.from_numpy(PATCHES), **sizes)
    ours = losses.image_from_patches(jnp.asarray(PATCHES), **sizes)
    np.testing.assert_array_equal(ours, theirs.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(ours[1, 4:, 8:].ravel(), PATCHES[1, 5])

    clean = torch.from_numpy(CLEAN).permute(0, 3, 1, 2)
    np.testing.assert_allclose(
        losses.squared_error(ours, jnp.asarray(CLEAN)),
        torch_reference.losses.squared_error(theirs, clean),
        rtol=1e-12,
    )
    for levels in (2, 6):
        assert losses.denoising_iters(levels) == torch_reference.losses.denoising_iters(levels) == levels + 1


@pytest.mark.parametrize("name", ["cross_entropy", "mean_cross_entropy", "contrastive_loss", "squared_error"])
def test_computed_in_float32_at_least(name: str) -> None:
    """From bfloat16, both sides."""
    arguments = {
        "contrastive_loss": (TEXT, IMAGE, np.array([0.7])),
        "squared_error": (CLEAN, CLEAN[::-1].astype(np.float32)),
    }.get(name, (LOGITS, LABELS))
    floating = [np.issubdtype(value.dtype, np.float64) for value in arguments]
    ours = [jnp.asarray(x, jnp.bfloat16 if f else None) for x, f in zip(arguments, floating, strict=True)]
    theirs = [
        torch.tensor(x.copy(), dtype=torch.bfloat16 if f else None)
        for x, f in zip(arguments, floating, strict=True)
    ]

    actual, expected = getattr(losses, name)(*ours), getattr(torch_reference.losses, name)(*theirs)

    assert actual.dtype == jnp.float32
    assert expected.dtype == torch.float32
    np.testing.assert_allclose(actual, expected, rtol=2e-2 if name == "contrastive_loss" else 1e-5)


def test_nothing_counted() -> None:
    """The mean is NaN on both sides; here no gradient is spoilt by it."""
    labels = np.full((2, 5), 3)
    loss, gradient = jax.value_and_grad(losses.mean_cross_entropy)(
        jnp.asarray(LOGITS), jnp.asarray(labels), ignored=3
    )
    theirs = torch_reference.losses.mean_cross_entropy(
        torch.from_numpy(LOGITS), torch.from_numpy(labels), ignored=3
    )
    assert jnp.isnan(loss)
    assert theirs.isnan()
    assert jnp.all(gradient == 0)


def test_the_same_names_in_the_same_order() -> None:
    def public(module: Any) -> list[str]:
        return [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
        ]

    assert public(losses) == [n for n in public(torch_reference.losses) if n != "at_least_float32"]
