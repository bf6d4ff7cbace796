"""The optimisers by name and in pairs: what both libraries mean by them, and the sentence where they differ."""

from typing import Any

import pytest

from jaxmodels.compare import Training, compare
from parity_tests.toy_pairs import in_flax, in_torch, linear, normal, toy


import jax
import torch


def small_pair(**options: Any):
    torch.manual_seed(0)
    return toy(
        in_flax(lambda self, x: self.b(jax.nn.tanh(self.a(x))), a=linear(6, 5), b=linear(5, 3)),
        in_torch(lambda self, x: self.b(torch.tanh(self.a(x))), a=torch.nn.Linear(6, 5), b=torch.nn.Linear(5, 3)),
        normal(7, 6),
        batches=lambda step: {"x": normal(7, 6, seed=step)},
        **options,
    )


@pytest.mark.parametrize(
    "training",
    [
        Training(optimizer="sgd", momentum=0.9, nesterov=True, weight_decay=0.1, learning_rate=0.1),
        Training(optimizer="sgd", momentum=0.9, dampening=0.5, learning_rate=0.1),
        Training(optimizer="adam", weight_decay=0.1, decayed=lambda name: name.endswith("weight"), clip_value=0.01),
        Training(warmup_steps=2, schedule="cosine", total_steps=9, accumulate=2, ema_decay=0.9, clip_norm=0.1),
        Training(optimizer="lion", weight_decay=0.1, learning_rate=1e-3),
        Training(optimizer="adafactor", weight_decay=0.1, learning_rate=1e-2),
    ],
    ids=lambda training: training.optimizer,
)
def test_steps(training: Training) -> None:
    result = compare(small_pair(), dtype="float64", steps=6, training=training)
    assert result.ok, (result.divergence, result.reason)
