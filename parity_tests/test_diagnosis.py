"""Which mistake is named for a difference, and that none is where none explains it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

from jaxmodels.compare import Pair, compare
from parity_tests.toy_pairs import in_flax, in_torch, linear, normal, toy


LABELS = np.array([0, 3, -100, 1, -100, 2, 4, 4])


def diagnosis(pair: Pair, **options: Any) -> str | None:
    result = compare(pair, **{"steps": 0, "gradients": False, **options})
    assert result.verdict == "different"
    return result.diagnosis


def two_layers(theirs: Callable[[torch.Tensor], Any], ours: Callable[[jax.Array], Any]) -> Pair:
    """Two linear layers with a function between them."""
    return toy(
        in_flax(lambda s, x: s.b(ours(s.a(x))), a=linear(8, 16), b=linear(16, 4)),
        in_torch(lambda s, x: s.b(theirs(s.a(x))), a=torch.nn.Linear(8, 16), b=torch.nn.Linear(16, 4)),
        normal(6, 8),
    )


def test_nothing_is_named_where_no_mistake_explains_the_difference() -> None:
    assert diagnosis(two_layers(lambda x: x, lambda x: x + 0.01 * jnp.sin(3 * x))) is None


def test_a_mistake_that_is_made_together_with_another_is_not_named() -> None:
    pair = two_layers(F.gelu, lambda x: nnx.gelu(x) + 0.01 * jnp.sin(3 * x))
    assert diagnosis(pair) is None


def test_two_mistakes_with_the_same_numbers_are_both_named() -> None:
    pair = two_layers(lambda x: torch.cat(x.chunk(2, -1), -1), lambda x: jnp.roll(x, 8, -1))
    named = diagnosis(pair)
    assert named is not None
    assert "takes the parts of a cut tensor in the order second, first" in named
    assert "joins in the order second, first" in named


def test_the_same_mistake_at_two_places_is_named_once() -> None:
    pair = two_layers(lambda x: F.gelu(F.gelu(x) - 1), lambda x: nnx.gelu(nnx.gelu(x) - 1))
    assert diagnosis(pair) == "after a: nnx.gelu uses the tanh form; approximate=False removes the difference"


def test_a_module_far_inside_is_replayed_alone() -> None:
    block = in_torch(lambda s, x: x + s.b(F.silu(s.a(x))), a=torch.nn.Linear(8, 8), b=torch.nn.Linear(8, 8))
    ours = in_flax(lambda s, x: x + s.b(nnx.relu(s.a(x))), a=linear(8, 8), b=linear(8, 8))
    pair = toy(
        in_flax(lambda s, x: s.block(s.first(x)), first=linear(8, 8), block=ours),
        in_torch(lambda s, x: s.block(s.first(x)), first=torch.nn.Linear(8, 8), block=block),
        normal(6, 8),
    )
    named = diagnosis(pair)
    assert named == "after block.a: JAX computes ReLU, PyTorch SiLU; nnx.silu removes the difference"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda z, y, valid: _losses(z, y).mean(where=valid) * valid.mean(), "the mean over all targets"),
        (
            lambda z, y, valid: _losses(z, y, 0.1).mean(where=valid),
            "label smoothing is 0.1 in JAX, 0 in PyTorch",
        ),
        (
            lambda z, y, valid: _losses(z, y).mean(where=valid) / np.log(2),
            "JAX's loss is in bits, PyTorch in nats",
        ),
    ],
    ids=["ignore_index", "label smoothing", "bits"],
)
def test_losses(wrong: Callable[..., jax.Array], named: str) -> None:
    pair = toy(
        in_flax(lambda s, x: s.a(x), a=linear(4, 5)),
        in_torch(lambda s, x: s.a(x), a=torch.nn.Linear(4, 5)),
        normal(8, 4),
        loss_ours=lambda m, i: wrong(m(i["x"]), jnp.maximum(LABELS, 0), LABELS >= 0),
        loss_theirs=lambda m, i: F.cross_entropy(m(i["x"]), torch.from_numpy(LABELS)),
    )
    assert named in (diagnosis(pair, gradients=True) or "")


def _losses(logits: jax.Array, labels: Any, smoothing: float = 0.0) -> jax.Array:
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 5), smoothing))


def test_a_gradient_that_jax_stops() -> None:
    pair = two_layers(lambda x: x + torch.tanh(x), lambda x: x + jax.lax.stop_gradient(jnp.tanh(x)))
    named = diagnosis(pair, gradients=True)
    assert named is not None
    assert "JAX stops the gradient of tanh, PyTorch does not" in named
