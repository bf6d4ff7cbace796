"""Training mode: running statistics, dropout with the same masks, and what one side lacks on purpose."""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from jaxmodels.compare import Pair, Result, compare
from jaxmodels.compare.divergence import Findings, find_divergence
from jaxmodels.compare.noise import Statistic
from jaxmodels.compare.training_mode import Masks
from jaxmodels.convert.table import Twin
from parity_tests.toy_pairs import CHANNELS_LAST, in_flax, in_torch, linear, normal, toy


class UnbiasedBatchNorm(nnx.BatchNorm):
    """Keeps the statistics as PyTorch does."""

    def __call__(self, x: jax.Array, use_running_average: bool | None = None, **options: Any) -> jax.Array:
        old = self.var[...]
        y = super().__call__(x, use_running_average, **options)
        n = x.size // x.shape[-1]
        of_batch = (self.var[...] - self.momentum * old) / (1 - self.momentum)
        if not self.use_running_average:
            self.var[...] = self.momentum * old + (1 - self.momentum) * of_batch * n / (n - 1)
        return y


class OffsetBatchNorm(UnbiasedBatchNorm):
    """Keeps other statistics, whatever its momentum."""

    def __call__(self, x: jax.Array, use_running_average: bool | None = None, **options: Any) -> jax.Array:
        y = super().__call__(x, use_running_average, **options)
        if not self.use_running_average:
            self.mean[...] = self.mean[...] + 0.1 * jnp.arange(4)
        return y


def norm_pair(kind: type[nnx.BatchNorm] = UnbiasedBatchNorm, momentum: float = 0.9, **options: Any) -> Pair:
    """Convolution, BatchNorm and dropout of images, where only a right axis order fits."""
    torch.manual_seed(0)
    rngs = nnx.Rngs(0)
    rate = options.pop("rate", 0.5)
    ours = in_flax(
        lambda self, x: self.drop(self.norm(self.conv(x))),
        conv=nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs),
        norm=kind(4, momentum=momentum, epsilon=1e-5, use_fast_variance=False, rngs=rngs),
        drop=nnx.Dropout(rate, rngs=rngs),
    )
    theirs = in_torch(
        lambda self, x: self.drop(self.norm(self.conv(x))),
        conv=nn.Conv2d(3, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        drop=nn.Dropout(0.5),
    )
    return toy(ours, theirs, normal(3, 3, 5, 6), **(CHANNELS_LAST | options))


def run(pair: Pair, **options: Any) -> Result:
    return compare(pair, **{"mode": "train", "steps": 2, **options})


def test_statistics_and_masks_agree(dtype: str) -> None:
    pair = norm_pair()
    before = {name: value.clone() for name, value in pair.theirs.state_dict().items()}
    result = run(pair, dtype=dtype)
    assert result.ok, (result.divergence, result.reason)
    assert {check.name for check in result.statistics} == {"norm.running_mean", "norm.running_var"}
    assert max(check.tolerance for check in result.statistics) < {"float32": 1e-4, "float64": 1e-13}[dtype]
    assert "drop: dropout uses the same masks on both sides, drawn once" in result.notes
    # The user's models are as they were, and dropout did drop something: the loss of evaluation mode is another.
    assert all(torch.equal(value, before[name]) for name, value in pair.theirs.state_dict().items())
    assert isinstance(pair.ours.drop, nnx.Dropout)
    assert result.losses.pytorch[0] != compare(pair, dtype=dtype, steps=0).losses.pytorch[0]


@pytest.mark.parametrize(
    ("kind", "momentum", "reason"),
    [
        (nnx.BatchNorm, 0.1, r"share of the old statistics.*momentum=0\.9 in JAX removes the difference"),
        (
            UnbiasedBatchNorm,
            0.1,
            r"share of the old statistics.*momentum=0\.9 in JAX removes the difference",
        ),
        (
            nnx.BatchNorm,
            0.99,
            r"JAX keeps 0\.99 of the old statistics, PyTorch 0\.9; momentum=0\.9 in JAX removes",
        ),
        (
            UnbiasedBatchNorm,
            0.0,
            r"JAX keeps 0 of the old statistics, PyTorch 0\.9; momentum=0\.9 in JAX removes",
        ),
        (OffsetBatchNorm, 0.9, None),
    ],
)
def test_statistics_that_differ_are_explained(
    kind: type[nnx.BatchNorm], momentum: float, reason: str | None
) -> None:
    result = run(norm_pair(kind, momentum), dtype="float64", gradients=False)
    assert result.divergence is not None
    assert (result.divergence.layer, result.divergence.kind) == ("norm", "statistics")
    assert all(check.ok for check in result.outputs)
    if reason is None:
        assert result.diagnosis is None
    else:
        assert result.diagnosis is not None
        assert re.search(reason, result.diagnosis)


def test_the_variance_of_a_library_is_no_fault_of_a_port() -> None:
    result = run(norm_pair(nnx.BatchNorm, 0.9), dtype="float64", gradients=False)
    assert result.ok
    (note,) = [note for note in result.notes if note.startswith("norm.running_var: ")]
    assert re.search(r"running variance is unbiased: .* with n = 90 values per channel; nothing else", note)


def test_the_convention_of_a_library_hides_no_mistake() -> None:
    convention = Statistic("a.running_var", 1.0, 0.0, 0.1, reason="unbiased", convention=True)
    mistake = Statistic("b.running_mean", 1.0, 0.0, 0.1, reason="momentum")
    found = find_divergence(Findings(statistics=[convention, mistake]))
    assert found is not None
    assert found.layer == "b"
    assert find_divergence(Findings(statistics=[convention])) is None


def test_the_mask_of_a_sequence_as_long_as_it_is_wide() -> None:
    masks = Masks()
    drawn = masks.draw("drop", 0, (2, 5, 5))
    assert np.array_equal(masks.in_flax(Twin("drop", "drop", None), 0, (2, 5, 5)), drawn)


def test_another_rate_of_dropout_differs_there() -> None:
    result = run(norm_pair(rate=0.1), gradients=False)
    assert result.divergence is not None
    assert result.divergence.detail == "drop gets the same input and returns another output"
    assert "drop: the rate of dropout is 0.5 in PyTorch and 0.1 in JAX" in result.notes


def test_masks_that_fit_in_two_ways_are_refused() -> None:
    pair = replace(norm_pair(), inputs={"x": normal(3, 3, 4, 4)})
    with pytest.raises(
        ValueError, match=r"drop: the mask of shape \(3, 4, 4, 4\) .* in two ways; give its Twin"
    ):
        run(pair, gradients=False)


def test_attention_and_functional_dropout() -> None:
    """Rates inside of attention are set to 0, and said so; dropout that is only a function is refused."""
    ours = in_flax(
        lambda self, x: self.attend(x),
        attend=nnx.MultiHeadAttention(2, 8, dropout_rate=0.3, decode=False, rngs=nnx.Rngs(0)),
    )
    theirs = in_torch(
        lambda self, x: self.attend(x, x, x)[0], attend=nn.MultiheadAttention(8, 2, 0.3, batch_first=True)
    )
    result = run(toy(ours, theirs, normal(2, 5, 8)), gradients=False)
    assert result.ok, (result.divergence, result.reason)
    assert result.notes == ["attend: the rate of dropout is set to 0 on both sides"]
    random = in_torch(
        lambda self, x: nn.functional.dropout(self.layer(x), 0.5, self.training), layer=nn.Linear(8, 8)
    )
    pair = toy(in_flax(lambda self, x: self.layer(x), layer=linear(8, 8)), random, normal(2, 8))
    with pytest.raises(ValueError, match="its dropout layers repeat their masks in training mode"):
        run(pair)


class TestOneSided:
    """What one side lacks on purpose is named in the pair; everything else is refused."""

    def pair(self, **options: Any) -> Pair:
        torch.manual_seed(0)
        ours = in_flax(lambda self, x: self.head(x), head=linear(8, 4, use_bias=False))
        ours.extra = nnx.Param(jnp.ones(3))
        theirs = in_torch(lambda self, x: self.head(x), head=nn.Linear(8, 4))
        nn.init.zeros_(theirs.head.bias)
        return toy(ours, theirs, normal(4, 8), **options)

    def test_named(self) -> None:
        result = compare(
            self.pair(only_theirs=("head.bias",), only_ours=("extra",)), dtype="float64", steps=2
        )
        assert result.ok, (result.divergence, result.reason)
        assert result.notes == [
            "head.bias: only PyTorch has it, as only_theirs says; Flax lacks it",
            "extra: only Flax has it, as only_ours says; PyTorch lacks it",
        ]
        biased = self.pair(only_theirs=("head.bias",), only_ours=("extra",))
        nn.init.ones_(biased.theirs.head.bias)
        assert compare(biased, steps=0).verdict == "different"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"only_theirs": ("head.bias",)}, r"missing from the state_dict: extra"),
            ({"only_ours": ("extra",)}, r"not in the model: head\.bias"),
            (
                {"only_theirs": ("head.biases",)},
                r"only_theirs names 'head.biases', which the PyTorch model does not",
            ),
            (
                {"only_ours": ("head.kernel", "extra")},
                r"only_ours names 'head.kernel', which both models have",
            ),
        ],
    )
    def test_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare(self.pair(**options), gradients=False)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_mode() -> None:
    with pytest.raises(ValueError, match="mode must be 'eval' or 'train'; got mode='test'"):
        compare(norm_pair(), mode="test")
