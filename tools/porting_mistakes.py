"""The classic mistakes of porting, each made on purpose: writes their table in docs/compare.md.

    python tools/porting_mistakes.py

Every pair is compared twice, wrong and right. The table holds what the report says of the wrong one. A test makes
all of them again: the wrong one must be found, at the same place and with the same diagnosis, and the right one must be
equal.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange
from flax import nnx
from torch.nn import functional as F

from jaxmodels.compare import Pair, compare, table_from_names


PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
BEGIN, END = "<!-- mistakes: begin -->\n", "<!-- mistakes: end -->\n"
WIDTH, HEADS, LENGTH = 16, 2, 6
DIM_HEAD = WIDTH // HEADS


class TorchNet(torch.nn.Module):
    """Named layers and a function that uses them."""

    def __init__(self, forward: Callable[..., Any], **layers: torch.nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


class FlaxNet(nnx.Module):
    """The same in Flax."""

    def __init__(self, forward: Callable[..., Any], **layers: nnx.Module) -> None:
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(self, x)


def pair(theirs: TorchNet, ours: FlaxNet, *shape: int, scale: float = 1.0) -> Pair:
    """Both nets on normal inputs; four axes are an image, channels first in PyTorch and last in JAX."""
    x = scale * np.random.default_rng(0).normal(size=shape)
    is_image = len(shape) == 4
    return Pair(
        name="mistake",
        ours=ours,
        theirs=theirs,
        table=table_from_names(ours, theirs),
        inputs={"x": x},
        to_ours=(lambda inputs: {"x": rearrange(inputs["x"], "b c h w -> b h w c")})
        if is_image
        else lambda inputs: inputs,
        output_axes="b c h w -> b h w c" if is_image and not hasattr(ours, "flat") else "... -> ...",
    )


def linear(inputs: int, outputs: int, **options: Any) -> tuple[torch.nn.Linear, nnx.Linear]:
    """The same layer twice."""
    return (
        torch.nn.Linear(inputs, outputs, **options),
        nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0), use_bias=options.get("bias", True)),
    )


def gelu_form(wrong: bool) -> Pair:
    (t1, j1), (t2, j2) = linear(WIDTH, 32), linear(32, WIDTH)
    theirs = TorchNet(lambda m, x: m.down(F.gelu(m.up(x))), up=t1, down=t2)
    ours = FlaxNet(lambda m, x: m.down(jax.nn.gelu(m.up(x), approximate=wrong)), up=j1, down=j2)
    return pair(theirs, ours, 4, WIDTH)


def norm_epsilon(wrong: bool) -> Pair:
    theirs = TorchNet(lambda m, x: m.norm(x), norm=torch.nn.LayerNorm(WIDTH))
    norm = nnx.LayerNorm(WIDTH, epsilon=1e-6 if wrong else 1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    return pair(theirs, FlaxNet(lambda m, x: m.norm(x), norm=norm), 4, WIDTH, scale=0.1)


def convolution_padding(wrong: bool) -> Pair:
    theirs = TorchNet(lambda m, x: m.conv(x), conv=torch.nn.Conv2d(3, 8, 3, stride=2, padding=1))
    padding: Any = "SAME" if wrong else ((1, 1), (1, 1))
    conv = nnx.Conv(3, 8, (3, 3), strides=2, padding=padding, rngs=nnx.Rngs(0))
    return pair(theirs, FlaxNet(lambda m, x: m.conv(x), conv=conv), 2, 3, 8, 8)


class RawLinear(nnx.Module):
    """A square matrix kept in PyTorch's layout."""

    def __init__(self, transpose: bool) -> None:
        self.weight, self.bias = nnx.Param(jnp.zeros((WIDTH, WIDTH))), nnx.Param(jnp.zeros(WIDTH))
        self.transpose = transpose

    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.weight[...]
        return x @ (weight.T if self.transpose else weight) + self.bias[...]


def transposed_kernel(wrong: bool) -> Pair:
    theirs = TorchNet(lambda m, x: m.proj(x), proj=torch.nn.Linear(WIDTH, WIDTH))
    return pair(theirs, FlaxNet(lambda m, x: m.proj(x), proj=RawLinear(not wrong)), 4, WIDTH)


def attention(
    *,
    order: str = "b n (three h d) -> three b h n d",
    scale: float = DIM_HEAD**-0.5,
    hide: Callable[[Any], Any] | None = None,
    turn: Callable[[Any], Any] = lambda x: x,
    turn_torch: Callable[[Any], Any] = lambda x: x,
) -> Pair:
    """PyTorch's correct attention, and JAX's with the mistakes that the arguments make."""
    t1, j1 = linear(WIDTH, 3 * WIDTH, bias=False)
    t2, j2 = linear(WIDTH, WIDTH)
    keep = np.tril(np.ones((LENGTH, LENGTH), bool))

    def forward_torch(m: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = rearrange(m.qkv(x), "b n (three h d) -> three b h n d", three=3, h=HEADS)
        scores = turn_torch(q) @ turn_torch(k).mT * DIM_HEAD**-0.5
        if hide is not None:
            scores = scores.masked_fill(~torch.from_numpy(keep), torch.finfo(scores.dtype).min)
        return m.out(rearrange(scores.softmax(-1) @ v, "b h n d -> b n (h d)"))

    def forward(m: Any, x: jax.Array) -> jax.Array:
        q, k, v = rearrange(m.qkv(x), order, three=3, h=HEADS)
        scores = turn(q) @ turn(k).mT * scale
        if hide is not None:
            scores = jnp.where(hide(keep), jnp.finfo(scores.dtype).min, scores)
        return m.out(rearrange(jax.nn.softmax(scores) @ v, "b h n d -> b n (h d)"))

    return pair(TorchNet(forward_torch, qkv=t1, out=t2), FlaxNet(forward, qkv=j1, out=j2), 2, LENGTH, WIDTH)


def qkv_order(wrong: bool) -> Pair:
    return attention(
        order="b n (h three d) -> three b h n d" if wrong else "b n (three h d) -> three b h n d"
    )


def mask_polarity(wrong: bool) -> Pair:
    return attention(hide=lambda keep: keep if wrong else ~keep)


def attention_scale(wrong: bool) -> Pair:
    return attention(scale=(WIDTH if wrong else DIM_HEAD) ** -0.5)


def rotary_pairing(wrong: bool) -> Pair:
    angles = np.outer(np.arange(LENGTH), 1e4 ** -(np.arange(DIM_HEAD // 2) / (DIM_HEAD // 2)))

    def half_split(x: Any, cos: Any, sin: Any, stack: Any) -> Any:
        a, b = x[..., : DIM_HEAD // 2], x[..., DIM_HEAD // 2 :]
        return stack([a * cos - b * sin, b * cos + a * sin], -1)

    def turn(x: jax.Array) -> jax.Array:
        cos, sin = jnp.asarray(np.cos(angles), x.dtype), jnp.asarray(np.sin(angles), x.dtype)
        if not wrong:
            return half_split(x, cos, sin, jnp.concatenate)
        a, b = x[..., 0::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)

    def turn_torch(x: torch.Tensor) -> torch.Tensor:
        cos, sin = (torch.from_numpy(function(angles)).to(x.dtype) for function in (np.cos, np.sin))
        return half_split(x, cos, sin, torch.cat)

    return attention(turn=turn, turn_torch=turn_torch)


def unbiased_variance(wrong: bool) -> Pair:
    (t1, j1), (t2, j2) = linear(WIDTH, WIDTH), linear(WIDTH, WIDTH)
    theirs = TorchNet(lambda m, x: m.last((y := m.first(x)) / y.std(-1, keepdim=True)), first=t1, last=t2)

    def forward(m: Any, x: jax.Array) -> jax.Array:
        y = m.first(x)
        return m.last(y / y.std(-1, keepdims=True, ddof=0 if wrong else 1))

    return pair(theirs, FlaxNet(forward, first=j1, last=j2), 4, WIDTH)


def image_resize(wrong: bool) -> Pair:
    theirs = TorchNet(
        lambda m, x: m.conv(F.interpolate(x, (4, 4), mode="bilinear")), conv=torch.nn.Conv2d(3, 8, 1)
    )

    def forward(m: Any, x: jax.Array) -> jax.Array:
        return m.conv(jax.image.resize(x, (x.shape[0], 4, 4, 3), "bilinear", antialias=wrong))

    return pair(theirs, FlaxNet(forward, conv=nnx.Conv(3, 8, (1, 1), rngs=nnx.Rngs(0))), 2, 3, 8, 8)


def flatten_order(wrong: bool) -> Pair:
    t, j = linear(3 * 4 * 4, 8)
    theirs = TorchNet(lambda m, x: m.flat(x.flatten(1)), flat=t)
    order = "b h w c -> b (h w c)" if wrong else "b h w c -> b (c h w)"
    return pair(theirs, FlaxNet(lambda m, x: m.flat(rearrange(x, order)), flat=j), 2, 3, 4, 4)


def pooling_padding(wrong: bool) -> Pair:
    theirs = TorchNet(
        lambda m, x: m.conv(F.avg_pool2d(x, 3, stride=1, padding=1)), conv=torch.nn.Conv2d(3, 8, 1)
    )

    def forward(m: Any, x: jax.Array) -> jax.Array:
        return m.conv(nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=not wrong))

    return pair(theirs, FlaxNet(forward, conv=nnx.Conv(3, 8, (1, 1), rngs=nnx.Rngs(0))), 2, 3, 8, 8)


def glu_halves(wrong: bool) -> Pair:
    (t1, j1), (t2, j2) = linear(WIDTH, 2 * WIDTH), linear(WIDTH, WIDTH)
    theirs = TorchNet(lambda m, x: m.down(F.glu(m.up(x))), up=t1, down=t2)

    def forward(m: Any, x: jax.Array) -> jax.Array:
        a, b = jnp.split(m.up(x), 2, axis=-1)
        return m.down(jax.nn.sigmoid(a) * b if wrong else a * jax.nn.sigmoid(b))

    return pair(theirs, FlaxNet(forward, up=j1, down=j2), 4, WIDTH)


def forgotten_detach(wrong: bool) -> Pair:
    (t1, j1), (t2, j2) = linear(WIDTH, WIDTH), linear(WIDTH, WIDTH)
    theirs = TorchNet(lambda m, x: m.last(x + m.first(x).detach()), first=t1, last=t2)
    stop: Callable[[jax.Array], jax.Array] = (lambda y: y) if wrong else jax.lax.stop_gradient
    return pair(theirs, FlaxNet(lambda m, x: m.last(x + stop(m.first(x))), first=j1, last=j2), 4, WIDTH)


class Mistake(NamedTuple):
    """A row of the table.

    Attributes:
      name: the mistake, and how it comes about.
      make: the pair, wrong or right.
      in_gradient: whether only gradients show it.
    """

    name: str
    make: Callable[[bool], Pair]
    in_gradient: bool = False


MISTAKES = (
    Mistake(
        "GELU form: `jax.nn.gelu` and `nnx.gelu` use the tanh approximation",
        gelu_form,
    ),
    Mistake("Epsilon: Flax's LayerNorm has 1e-6, PyTorch's 1e-5", norm_epsilon),
    Mistake(
        'Padding: `"SAME"` pads a strided convolution more at the end than at the beginning',
        convolution_padding,
    ),
    Mistake(
        "Transposed kernel: PyTorch keeps (out, in), Flax (in, out); square matrices fit both ways",
        transposed_kernel,
    ),
    Mistake(
        "QKV order: a fused layer is cut as (head, 3, dim) instead of (3, head, dim)",
        qkv_order,
    ),
    Mistake(
        "Mask polarity: True means *keep* on one side and *hide* on the other",
        mask_polarity,
    ),
    Mistake(
        "Attention scale: the root of the model's width instead of the head's",
        attention_scale,
    ),
    Mistake(
        "Rotary pairing: neighbours (0, 1), (2, 3) … instead of the two halves",
        rotary_pairing,
    ),
    Mistake(
        "Variance: `torch.std` and `torch.var` divide by n − 1, `jnp` by n",
        unbiased_variance,
    ),
    Mistake(
        "Resize: `jax.image.resize` smooths when it shrinks, `F.interpolate` does not",
        image_resize,
    ),
    Mistake(
        "Flatten: channels-last features reach the Linear layer in another order",
        flatten_order,
    ),
    Mistake(
        "Pooling: the zeros of the padding are not counted",
        pooling_padding,
    ),
    Mistake("Gated unit: the wrong half is the gate", glu_halves),
    Mistake(
        "Detach: `.detach()` was not ported, so only gradients differ",
        forgotten_detach,
        in_gradient=True,
    ),
)


def report(mistake: Mistake, wrong: bool) -> tuple[float, str, str]:
    """The error of the outputs in units of the tolerance, the place and the mistake; "" where the sides are equal."""
    torch.manual_seed(0)
    result = compare(mistake.make(wrong), steps=0, gradients=mistake.in_gradient)
    share = max(check.error / check.tolerance for check in result.outputs)
    return share, result.divergence.detail if result.divergence else "", result.diagnosis or ""


def table() -> str:
    """All mistakes as Markdown; errors have one digit, since another machine rounds differently."""
    lines = ["| mistake | output error | place | diagnosis |", "| --- | --: | --- | --- |"]
    for mistake in MISTAKES:
        share, place, diagnosis = report(mistake, wrong=True)
        error = "within tolerance" if share <= 1 else f"{float(f'{share:.0e}'):,.0f} × tolerance"
        lines.append(f"| {mistake.name} | {error} | {place} | {diagnosis} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
