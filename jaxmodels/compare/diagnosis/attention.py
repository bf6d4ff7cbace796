"""Masks, and the attention functions that PyTorch computes in one piece."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import (
    Variant,
    cut_in_order,
    divisors,
    instead,
    on_input,
    with_argument,
)


COMPARISONS = {"ge": "gt", "gt": "ge", "le": "lt", "lt": "le"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
REVERSED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt"}


def masks(operation: Operation) -> Iterator[Variant]:
    """Where a mask is applied: its polarity, its axes, and whether it is there."""
    name = operation.name
    if name in ("masked_fill", "where") and len(operation.args) >= 3:
        place = 1 if name == "masked_fill" else 0
        mask = operation.args[place]
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            return
        for kind, what, convert in _mask_changes(mask):
            yield Variant(kind, what, _CURES[kind], on_input(convert, place))
        none = on_input(torch.zeros_like if name == "masked_fill" else torch.ones_like, place)
        yield Variant("mask missing", "JAX does not apply the mask", "jnp.where(mask, …)", none)
        if name == "masked_fill":
            for value in (0.0, -1.0):
                what = f"JAX fills masked places with {value:g}"
                yield Variant("mask value", what, "jnp.finfo(dtype).min", with_argument(2, "value", value))
    elif name in ("invert", "logical_not"):
        yield Variant(
            "mask polarity", "JAX does not invert the mask", "~mask", instead(lambda x, *_, **__: x)
        )
    elif name in ("tril", "triu"):
        own = operation.argument(1, "diagonal", 0)
        for other in (own - 1, own + 1):
            what = f"the mask begins at diagonal {other} in JAX, at {own} in PyTorch"
            yield Variant("causal offset", what, f"k={own}", with_argument(1, "diagonal", other))
        swapped = torch.triu if name == "tril" else torch.tril
        what = f"JAX keeps the {'upper' if name == 'tril' else 'lower'} triangle"
        yield Variant(
            "mask polarity", what, f"jnp.{name}", instead(lambda x, diagonal=0: swapped(x, diagonal))
        )
        yield Variant(
            "mask missing", "JAX leaves the triangle out", f"jnp.{name}", instead(lambda x, *_, **__: x)
        )
    elif name in COMPARISONS:
        for other, kind in ((COMPARISONS[name], "causal offset"), (REVERSED[name], "mask polarity")):
            what = f"JAX compares with {SIGNS[other]}, PyTorch with {SIGNS[name]}"
            change = instead(lambda a, b, o=other: getattr(torch, o)(torch.as_tensor(a), b))
            yield Variant(kind, what, SIGNS[name], change)
        for shift in (1, -1):
            what = f"the mask begins {abs(shift)} place {'earlier' if shift > 0 else 'later'} in JAX"
            change = instead(lambda a, b, s=shift: getattr(torch, name)(torch.as_tensor(a) + s, b))
            yield Variant("causal offset", what, "PyTorch's comparison", change)


_CURES = {
    "mask polarity": "inverting the mask",
    "mask axes": "transposing the mask",
    "causal offset": "PyTorch's diagonal",
}


def _mask_changes(mask: torch.Tensor) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Ways to read a boolean mask wrongly."""
    yield "mask polarity", "the mask hides in JAX what it keeps in PyTorch", lambda m: ~m
    if mask.ndim > 1 and mask.shape[-1] == mask.shape[-2]:
        yield "mask axes", "the mask's queries and keys are exchanged in JAX", lambda m: m.mT
        for shift in (1, -1):
            what = f"the mask is shifted by one place along the keys in JAX ({shift:+d})"
            yield "causal offset", what, lambda m, s=shift: _shifted(m, s)


def _shifted(mask: torch.Tensor, by: int) -> torch.Tensor:
    """Moved along the last axis; what enters continues the edge."""
    rolled = torch.roll(mask, by, -1)
    edge = (0, 0) if by > 0 else (-1, -1)
    rolled[..., edge[0]] = mask[..., edge[1]]
    return rolled


def fused_attention(operation: Operation) -> Iterator[Variant]:
    """F.scaled_dot_product_attention with another scale or mask."""
    if operation.name != "scaled_dot_product_attention":
        return
    q, k = operation.args[:2]
    mask = operation.argument(3, "attn_mask")
    causal = operation.argument(5, "is_causal", False)
    own = operation.argument(6, "scale") or q.shape[-1] ** -0.5
    width = q.shape[-1] * (q.shape[-3] if q.ndim > 3 else 1)
    yield from _scales(own, q.shape[-1], width, lambda scale: _attention(scale=scale))
    yield from _scales(own, k.shape[-2], q.shape[-2], lambda scale: _attention(scale=scale))
    yield Variant("softmax axis", "JAX takes the softmax over the queries", "axis=-1", _attention(axis=-2))
    if causal:
        what = "JAX does not mask the future; PyTorch's is_causal does"
        yield Variant("mask missing", what, "a causal mask", _attention(causal=None))
        for offset, text in ((-1, "hides the place itself too"), (1, "shows one place of the future")):
            cure = "jnp.tril(ones, k=0)"
            yield Variant("causal offset", f"JAX's causal mask {text}", cure, _attention(causal=offset))
        upper = _attention(causal=0, convert=lambda m: ~m)
        yield Variant(
            "mask polarity", "the mask hides in JAX what it keeps in PyTorch", "inverting it", upper
        )
        past = _attention(causal=0, convert=lambda m: m.mT)
        yield Variant("mask polarity", "JAX masks the past, PyTorch the future", "jnp.tril", past)
    elif mask is None:
        yield Variant("mask extra", "JAX masks the future, PyTorch does not", "no mask", _attention(causal=0))
    elif mask.dtype == torch.bool:
        for kind, what, convert in _mask_changes(mask):
            yield Variant(kind, what, _CURES[kind], _attention(convert=convert))
        yield Variant(
            "mask missing", "JAX does not apply the mask", "mask=mask", _attention(convert=torch.ones_like)
        )
    else:
        yield Variant(
            "mask missing", "JAX does not apply the mask", "bias=mask", _attention(convert=torch.zeros_like)
        )


def _scales(own: float, dim: int, width: int, change: Callable[[float], Any]) -> Iterator[Variant]:
    named = {
        1.0: "JAX does not scale the scores",
        own * own: f"JAX scales the scores twice, by {own:.6g} each time",
        width**-0.5: f"JAX scales the scores by {width} ** -0.5",
        dim**-0.5: f"JAX scales the scores by {dim} ** -0.5",
        1.0 / dim: f"JAX scales the scores by 1 / {dim}",
        math.sqrt(dim): f"JAX multiplies the scores by √{dim}",
        own**0.5: "JAX scales the scores by the root of PyTorch's factor",
    }
    for scale, what in named.items():
        if abs(scale - own) > 1e-6 * own:
            text = f"{dim} ** -0.5" if abs(own - dim**-0.5) < 1e-6 else f"the factor {own:.6g}"
            yield Variant("attention scale", f"{what}, PyTorch by {own:.6g}", text, change(scale))


def _attention(
    *,
    scale: float | None = None,
    causal: int | bool | None = True,
    convert: Callable[[torch.Tensor], torch.Tensor] = lambda mask: mask,
    axis: int = -1,
) -> Callable[..., Any]:
    """Attention by formula; `causal` is the diagonal of its mask, None leaves it out, True keeps PyTorch's choice."""

    def attend(
        q: Any,
        k: Any,
        v: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        factor = scale if scale is not None else options.get("scale") or q.shape[-1] ** -0.5
        if options.get("enable_gqa"):
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        scores = q @ k.mT * factor
        diagonal = 0 if causal is True and is_causal else causal
        if diagonal is not True and diagonal is not None:
            keep = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(diagonal)
            scores = scores.masked_fill(~convert(keep), torch.finfo(scores.dtype).min)
        elif attn_mask is not None:
            mask = convert(attn_mask)
            least = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(axis) @ v

    return instead(attend)


def multi_head_attention(operation: Operation) -> Iterator[Variant]:
    """nn.MultiheadAttention: its packed weight in another order, its scale, its masks."""
    if operation.name != "multi_head_attention_forward":
        return
    embed, heads = operation.args[3], operation.args[4]
    dim = embed // heads
    weight = operation.argument(5, "in_proj_weight")

    def scaled(factor: float) -> Any:
        def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            factors = torch.ones(3 * embed, dtype=args[5].dtype)
            factors[:embed] = factor
            weights = factors[:, None] * args[5], None if args[6] is None else factors * args[6]
            return function(*args[:5], *weights, *args[7:], **kwargs)

        return change

    if weight is not None:
        for other, what in ((1.0, "JAX does not scale the scores"), (embed**-0.5, f"JAX scales by {embed} ** -0.5"),
                            (1 / dim, f"JAX scales the scores by 1 / {dim}")):  # fmt: skip
            yield Variant("attention scale", what, f"{dim} ** -0.5", scaled(other * dim**0.5))
        for other_heads in divisors(embed):
            if other_heads != heads:
                what = f"JAX has {other_heads} heads, PyTorch {heads}"
                yield Variant("heads", what, f"num_heads={heads}", with_argument(4, "num_heads", other_heads))
        factors = (3, heads, dim)
        per_head = _rows(lambda w: cut_in_order(w, 0, factors, (1, 0, 2)))
        what = "JAX cuts in_proj_weight as (head, 3, dim), PyTorch as (3, head, dim)"
        yield Variant("fused order", what, "PyTorch's order", per_head)
        for order, text in (((1, 0, 2), "k, q, v"), ((0, 2, 1), "q, v, k"), ((2, 1, 0), "v, k, q"),
                            ((1, 2, 0), "k, v, q"), ((2, 0, 1), "v, q, k")):  # fmt: skip
            change = _rows(lambda w, o=order: torch.cat([w.chunk(3)[i] for i in o]))
            yield Variant("fused order", f"JAX takes in_proj_weight as {text}", "q, k, v", change)
    for name, place in (("attn_mask", 17), ("key_padding_mask", 15)):
        mask = operation.argument(place, name)
        if mask is None:
            continue
        none = with_argument(place, name, None)
        yield Variant("mask missing", f"JAX does not apply {name}", f"mask={name}", none)
        inverted = (
            ~mask if mask.dtype == torch.bool else torch.where(mask == 0, -torch.inf, 0.0).to(mask.dtype)
        )
        what = f"{name} hides in JAX what it keeps in PyTorch"
        yield Variant("mask polarity", what, "inverting it", with_argument(place, name, inverted))


def _rows(convert: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Converts the packed weight and its bias."""

    def change(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        weights = [None if one is None else convert(one) for one in args[5:7]]
        return function(*args[:5], *weights, *args[7:], **kwargs)

    return change
