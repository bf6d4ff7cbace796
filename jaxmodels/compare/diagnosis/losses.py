"""Losses: what they average over, and what they take."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from jaxmodels.compare.diagnosis.replay import Operation
from jaxmodels.compare.diagnosis.variant import Variant, instead, on_input, on_result, with_argument


SMOOTHINGS = (0.0, 0.05, 0.1, 0.2)
REGRESSIONS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
LOSSES = ("cross_entropy", "nll_loss", "kl_div", *REGRESSIONS, *BINARY)


def losses(operation: Operation) -> Iterator[Variant]:
    """The reduction, and what is particular to each loss."""
    name = operation.name
    if name not in LOSSES:
        return
    own = operation.kwargs.get("reduction", "mean")
    for other in ("sum", "mean", "batchmean"):
        if other != own and (other != "batchmean" or name == "kl_div"):
            what = f"JAX takes the {other.replace('batchmean', 'mean over examples')} of the loss, PyTorch the {own}"
            yield Variant("loss reduction", what, f"the {own}", _reduced(other))
    x = operation.args[0]
    if own == "mean":
        for size in dict.fromkeys(x.shape):
            what = f"JAX sums the loss over an axis of {size}, PyTorch takes the mean"
            yield Variant(
                "loss reduction", what, "the mean over all axes", on_result(lambda y, s=size: y * s)
            )
            what = f"JAX divides the loss by {size} more than PyTorch"
            yield Variant("loss reduction", what, "the mean", on_result(lambda y, s=size: y / s))
    for factor, text in ((0.5, "halves"), (2.0, "doubles")):
        yield Variant(
            "loss scale", f"JAX {text} the loss", "PyTorch's loss", on_result(lambda y, f=factor: f * y)
        )
    if name in ("cross_entropy", "nll_loss"):
        yield from _classification(operation)
    elif name in REGRESSIONS:
        for other in REGRESSIONS:
            if other != name:
                change = _another(getattr(F, other))
                yield Variant("kind of loss", f"JAX computes {other}, PyTorch {name}", name, change)
        root = on_result(torch.sqrt)
        yield Variant("kind of loss", "JAX takes the root of the loss", "the mean of the squares", root)
    elif name in BINARY:
        convert = torch.sigmoid if name == BINARY[1] else torch.logit
        what = (
            "JAX takes probabilities for logits"
            if name == BINARY[1]
            else "JAX takes logits for probabilities"
        )
        yield Variant("logits", what, f"the inputs of {name}", on_input(convert))
    elif name == "kl_div":
        swapped = instead(lambda x, y, **kwargs: F.kl_div(y.log(), x.exp(), **kwargs))
        yield Variant(
            "kind of loss", "JAX takes the divergence the other way round", "kl(target, input)", swapped
        )


def _reduced(reduction: str) -> Callable[..., Any]:
    return lambda function, *args, **kwargs: function(*args, **{**kwargs, "reduction": reduction})


def _another(function: Callable[..., Any]) -> Callable[..., Any]:
    return instead(lambda x, y, *_, reduction="mean", **__: function(x, y, reduction=reduction))


def _classification(operation: Operation) -> Iterator[Variant]:
    """Cross-entropy: smoothing, ignored targets, weights, and probabilities in place of logits."""
    name = operation.name
    x, target = operation.args[:2]
    classes = x.shape[1] if x.ndim > 1 else x.shape[0]
    ignored = operation.argument(4, "ignore_index", -100)
    if name == "cross_entropy":
        own = operation.argument(7, "label_smoothing", 0.0)
        for other in SMOOTHINGS:
            if abs(other - own) > 1e-9:
                what = f"label smoothing is {other:g} in JAX, {own:g} in PyTorch"
                change = with_argument(7, "label_smoothing", other)
                yield Variant("label smoothing", what, f"smoothing of {own:g}", change)
        if own:
            scaled = with_argument(7, "label_smoothing", own * classes / (classes - 1))
            what = "JAX spreads the smoothing over the other classes, PyTorch over all"
            yield Variant("label smoothing", what, f"optax.smooth_labels(labels, {own:g})", scaled)
        yield Variant(
            "logits",
            "JAX takes the softmax twice",
            "logits",
            on_input(lambda x: x.softmax(1 if x.ndim > 1 else 0)),
        )
        unnormalised = instead(
            lambda x, y, *_, **k: F.nll_loss(x, y, ignore_index=k.get("ignore_index", -100))
        )
        yield Variant("logits", "JAX leaves out the log softmax", "logits", unnormalised)
    if target.dtype == torch.int64:
        valid = int((target != ignored).sum())
        if valid not in (0, target.numel()):
            share = valid / target.numel()
            what = "JAX takes the mean over all targets, PyTorch over those that are not ignored"
            cure = "dividing by the number of valid targets"
            yield Variant("ignored targets", what, cure, on_result(lambda y: y * share))
            kept = instead(lambda x, y, *_, **__: F.cross_entropy(x, y.clamp_min(0)))
            yield Variant(
                "ignored targets", f"JAX counts the ignored targets, {ignored}", "leaving them out", kept
            )
        else:
            for index in (0, 1, int(target.max())):
                change = with_argument(4, "ignore_index", index)
                what = f"JAX ignores the targets {index}, PyTorch does not"
                yield Variant("ignored targets", what, "counting them", change)
        weight = operation.argument(2, "weight")
        if weight is not None:
            none = with_argument(2, "weight", None)
            yield Variant("class weights", "JAX leaves out the weights of the classes", "the weights", none)
            plain = instead(lambda x, y, w, *_, **__: (F.cross_entropy(x, y, reduction="none") * w[y]).mean())
            what = "JAX divides by the number of targets, PyTorch by the sum of their weights"
            yield Variant("class weights", what, "dividing by the sum of the weights", plain)
    for factor, text in ((1 / math.log(2), "bits, PyTorch in nats"), (math.log(2), "nats, PyTorch in bits")):
        yield Variant(
            "logarithm", f"JAX's loss is in {text}", "jnp.log", on_result(lambda y, f=factor: f * y)
        )
