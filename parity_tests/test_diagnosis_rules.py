"""Single rules of the diagnosis: what JAX's array makes them say, and that the right array is PyTorch's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from flax import nnx
from torch.nn import functional as F

from jaxmodels.compare import compare
from jaxmodels.compare.diagnosis.explain import explain, norm_of
from jaxmodels.compare.diagnosis.replay import Replay
from jaxmodels.compare.diagnosis.search import in_words
from jaxmodels.compare.noise import relative_error
from parity_tests.toy_pairs import in_flax, in_torch, linear, normal, toy


stop = jax.lax.stop_gradient


class Judged:
    """A PyTorch function on one array, and what is said of other arrays in place of its result."""

    def __init__(self, function: Callable[..., torch.Tensor], array: np.ndarray, **layers: Any) -> None:
        model = in_torch(lambda s, x: function(s, x), **layers)
        self.replay = Replay(model, lambda: model(torch.from_numpy(array)), unit="", target=None)

    def agrees(self, ours: Any, arrays: tuple[np.ndarray, ...]) -> bool:
        return arrays[0].shape == ours.shape and relative_error(np.asarray(ours), arrays[0]) < 1e-5

    def is_right(self, ours: Any) -> bool:
        return self.agrees(ours, self.replay.arrays)

    def diagnosis(self, ours: Any) -> str:
        norms = [norm_of(np.asarray(ours))]
        found = explain([self.replay], [], [], None, lambda arrays: self.agrees(ours, arrays), norms)
        return (in_words(found) or "").removesuffix(" removes the difference")


X = normal(2, 3, 8, 12).astype(np.float32)
SMALLER, LARGER = (2, 3, 4, 5), (2, 3, 11, 13)


@pytest.mark.parametrize(
    ("options", "size", "method", "antialias", "words"),
    [
        ({"mode": "bicubic"}, LARGER, "cubic", True, "'cubic' has a = -0.5, PyTorch's 'bicubic' a = -0.75; method='cubic-pytorch' with antialias=False"),
        ({"mode": "bicubic"}, SMALLER, "cubic", True, "a = -0.75, and jax.image.resize smooths before it shrinks (cubic); method='cubic-pytorch' with antialias=False"),
        ({"mode": "bicubic"}, SMALLER, "cubic-pytorch", False, None),
        ({"mode": "bicubic", "antialias": True}, SMALLER, "cubic", True, None),
        ({"mode": "bicubic", "antialias": True}, SMALLER, "cubic", False, "PyTorch smooths before it shrinks, jax.image.resize does not here; antialias=True"),
        ({"mode": "bilinear"}, SMALLER, "linear", False, None),
        ({"mode": "bilinear"}, SMALLER, "linear", True, "jax.image.resize smooths before it shrinks (linear); antialias=False"),
        ({"mode": "bilinear"}, SMALLER, "nearest", True, "with 'nearest' is not PyTorch's 'bilinear'; method='linear' with antialias=False"),
        ({"mode": "bilinear", "align_corners": True}, SMALLER, "linear", True, "PyTorch aligns the corners, jax.image.resize does not, and jax.image.resize smooths before it shrinks (linear); PyTorch's interpolation written out"),
        ({"mode": "nearest"}, SMALLER, "nearest", True, "'nearest' is PyTorch's 'nearest-exact', not its 'nearest'; indexing each axis"),
        ({"mode": "nearest-exact"}, SMALLER, "nearest", True, None),
    ],
)  # fmt: skip
def test_resizing(
    options: dict[str, Any], size: tuple[int, ...], method: str, antialias: bool, words: str | None
) -> None:
    judged = Judged(lambda s, x: F.interpolate(x, size[2:], **options), X)
    ours = jax.image.resize(X, size, method, antialias=antialias)
    assert judged.is_right(ours) == (words is None)
    if words is not None:
        assert words in judged.diagnosis(ours)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("b (h w) (p q c)", None),
        ("b (h w) (c p q)", "in the order third, first, second: what PyTorch has last, such as the channels of a patch, comes first"),
        ("b (h w) (q p c)", "merges the axes of sizes (4, 4, 3) in the order second, first, third"),
        ("b (w h) (p q c)", "merges the axes of sizes (2, 3) in the order second, first; "),
    ],
)  # fmt: skip
def test_patches(order: str, words: str | None) -> None:
    judged = Judged(lambda s, x: rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), X)
    ours = rearrange(X, f"b c (h p) (w q) -> {order}", p=4, q=4)
    assert judged.is_right(ours) == (words is None)
    if words is not None:
        assert words in judged.diagnosis(ours)


@pytest.mark.parametrize(
    ("padding", "words"),
    [
        ([(1, 1), (2, 2)], None),
        ("CIRCULAR", 'JAX pads the convolution by "CIRCULAR", PyTorch with zeros; padding=((1, 1), (2, 2))'),
        ("REFLECT", 'JAX pads the convolution by "REFLECT", PyTorch with zeros; padding=((1, 1), (2, 2))'),
    ],
)
def test_padding_modes(padding: Any, words: str | None) -> None:
    kernel = normal(4, 3, 3, 5).astype(np.float32)
    judged = Judged(lambda s, x: F.conv2d(x, torch.from_numpy(kernel), padding=(1, 2)), X)
    layer = nnx.Conv(3, 4, (3, 5), padding=padding, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel.set_value(jnp.asarray(kernel.transpose(2, 3, 1, 0)))
    ours = np.moveaxis(np.asarray(layer(jnp.moveaxis(X, 1, -1))), -1, 1)
    assert judged.is_right(ours) == (words is None)
    if words is not None:
        assert judged.diagnosis(ours) == words


def test_patches_of_unfold() -> None:
    judged = Judged(lambda s, x: F.unfold(x, (4, 2), stride=(4, 2)), X)
    assert judged.is_right(rearrange(X, "b c (h p) (w q) -> b (c p q) (h w)", p=4, q=2))
    ours = rearrange(X, "b c (h p) (w q) -> b (p q c) (h w)", p=4, q=2)
    words = (
        "JAX flattens a patch as (row, column, channel), PyTorch as (channel, row, column); PyTorch's order"
    )
    assert judged.diagnosis(ours) == words


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_directions(kind: type[torch.nn.RNNBase], batch_first: bool) -> None:
    torch.manual_seed(0)
    x, time = normal(4, 5, 3).astype(np.float32), int(batch_first)
    layer = kind(3, 6, batch_first=batch_first)
    judged = Judged(lambda s, x: s.layer(x)[0], x, layer=layer)
    with torch.no_grad():
        backwards = layer(torch.from_numpy(x).flip(time))[0]
    words = f"layer: JAX runs the {kind.__name__} backwards in time and returns its outputs "
    assert judged.diagnosis(backwards.numpy()) == f"{words}the last step first; reverse=False"
    assert judged.diagnosis(backwards.flip(time).numpy()) == f"{words}in the order of time; reverse=False"


def test_two_directions() -> None:
    torch.manual_seed(0)
    x = normal(4, 5, 3).astype(np.float32)
    layer = torch.nn.LSTM(3, 6, batch_first=True, bidirectional=True)
    judged = Judged(lambda s, x: s.layer(x)[0], x, layer=layer)
    forward, backward = np.split(judged.replay.arrays[0], 2, axis=-1)
    turned = np.concatenate([forward, backward[:, ::-1]], -1)
    assert "leaves the outputs of the LSTM's backward direction in reversed order; keep" in judged.diagnosis(
        turned
    )
    exchanged = np.concatenate([backward, forward], -1)
    assert "joins the LSTM's directions backward first" in judged.diagnosis(exchanged)


def test_reversed_axes_and_factors() -> None:
    judged = Judged(lambda s, x: torch.sin(x) * torch.cos(x), X)
    right = np.sin(X) * np.cos(X)
    assert judged.is_right(right)
    assert judged.diagnosis(right[:, :, ::-1]).startswith("JAX's values run backwards along axis 2 of")
    assert judged.diagnosis(right * -0.37) == "JAX's values are PyTorch's times -0.37; leaving the factor out"
    assert (
        judged.diagnosis(right * 320**-0.5)
        == "JAX's values are PyTorch's times 320 ** -0.5; leaving the factor out"
    )
    assert judged.diagnosis(right * 0.37 + 1e-3) == ""


@pytest.mark.parametrize("place", ["output", "layer"])
def test_a_factor_of_a_model(place: str) -> None:
    """The norm of JAX's arrays reaches the rule, of the second output as of what a layer gets."""
    factors = (0.37, 1) if place == "layer" else (1, 0.37)
    ours = in_flax(
        lambda s, x: (s.a(x), factors[1] * s.b(factors[0] * s.a(x))), a=linear(8, 16), b=linear(16, 4)
    )
    theirs = in_torch(lambda s, x: (s.a(x), s.b(s.a(x))), a=torch.nn.Linear(8, 16), b=torch.nn.Linear(16, 4))
    result = compare(toy(ours, theirs, normal(6, 8)), gradients=False)
    assert (
        result.diagnosis
        == "JAX's values are PyTorch's times 0.37; leaving the factor out removes the difference"
    )


def test_the_row_of_padding() -> None:
    ids = np.array([[0, 3, 2, 0], [1, 4, 0, 0], [5, 6, 7, 8]])
    theirs = in_torch(
        lambda s, x: s.b(s.e(x)), e=torch.nn.Embedding(9, 8, padding_idx=0), b=torch.nn.Linear(8, 4)
    )
    layers: dict[str, nnx.Module] = {"e": nnx.Embed(9, 8, rngs=nnx.Rngs(0)), "b": linear(8, 4)}
    wrong = compare(toy(in_flax(lambda s, x: s.b(s.e(x)), **layers), theirs, ids), steps=0)
    assert wrong.divergence is not None
    assert wrong.divergence.layer == "e"
    assert wrong.diagnosis is not None
    assert (
        "e: PyTorch's nn.Embedding(padding_idx=0) never trains row 0, JAX's embedding does" in wrong.diagnosis
    )
    assert "or, if that row may train, padding_idx=None in PyTorch" in wrong.diagnosis

    def cured(s: Any, ids: jax.Array) -> jax.Array:
        x = s.e(ids)
        return s.b(jnp.where((ids == 0)[..., None], stop(x), x))

    assert compare(toy(in_flax(cured, **layers), theirs, ids), steps=0).ok


@pytest.mark.parametrize("ours", [stop, lambda x: 0.5 * x + 0.5 * stop(x)], ids=["stopped", "halved"])
def test_gradients_stopped_at_two_places_of_every_block(ours: Callable[[jax.Array], jax.Array]) -> None:
    def run(x: Any, s: Any, tanh: Callable[..., Any], ours: Callable[..., Any]) -> Any:
        return x + ours(s.o(tanh(s.q(x)))) + ours(tanh(s.v(x)))

    def chain(s: Any, x: Any) -> Any:
        return s.h(s.blocks_1(s.blocks_0(s.first(x))))

    def block(side: Callable[..., Any], layer: Callable[..., Any], tanh: Any, ours: Any) -> Any:
        return side(lambda s, x: run(x, s, tanh, ours), **{name: layer(8, 8) for name in "qov"})

    torch.manual_seed(0)
    sides = []
    for arguments, head in (
        ((in_flax, linear, jnp.tanh, ours), linear(8, 3)),
        ((in_torch, torch.nn.Linear, torch.tanh, lambda x: x), torch.nn.Linear(8, 3)),
    ):
        side, layer = arguments[:2]
        blocks = {f"blocks_{i}": block(*arguments) for i in range(2)}
        sides.append(side(chain, first=layer(8, 8), h=head, **blocks))
    named = compare(toy(sides[0], sides[1], normal(6, 8)), steps=0).diagnosis
    if ours is not stop:
        assert named is None
    else:
        assert named is not None
        assert "JAX stops the gradients of" in named
        assert "leaving jax.lax.stop_gradient out twice removes the difference" in named
