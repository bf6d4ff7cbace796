"""Which ingredient explains why two training runs part."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from jaxmodels.compare import Pair, Setup, Training, explain_runs
from parity_tests.toy_pairs import in_flax, in_torch, linear, normal, toy


def dropout_pair() -> Pair:
    torch.manual_seed(0)
    theirs = in_torch(
        lambda self, x: self.b(self.drop(torch.tanh(self.a(x)))),
        a=torch.nn.Linear(6, 5),
        drop=torch.nn.Dropout(0.5),
        b=torch.nn.Linear(5, 3),
    )
    ours = in_flax(lambda self, x: x, a=linear(6, 5), b=linear(5, 3))
    return toy(ours, theirs, normal(7, 6), batches=lambda step: {"x": normal(7, 6, seed=step)})


TRAINING = Training(optimizer="sgd", learning_rate=0.1)
# One ingredient is planted; the precision differs as well, which matters little.
PLANTED: dict[str, dict[str, Any]] = {
    "initialisation": {"weights": {k: v + 0.1 for k, v in dropout_pair().theirs.state_dict().items()}},
    "batch order": {"batches": lambda step: {"x": normal(7, 6, seed=5 - step)}},
    "optimiser": {"training": Training(optimizer="sgd", learning_rate=0.1, momentum=0.9)},
    "moving average": {"training": replace(TRAINING, ema_decay=0.9)},
    "dropout": {"dropout": 3},
    "precision": {},
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_ingredient_is_first(name: str) -> None:
    pair = dropout_pair()
    before = {key: value.clone() for key, value in pair.theirs.state_dict().items()}
    first = Setup(training=TRAINING)
    second = replace(first, dtype="float64", **PLANTED[name])
    found = explain_runs(pair, first, second, steps=6)
    assert found.weights > 0
    share, *others = found.shares
    assert share.ingredient == name
    assert share.weights > 0.9
    assert share.loss > 0.9
    assert [other.ingredient for other in others] == ([] if name == "precision" else ["precision"])
    assert all(abs(other.weights) < 0.1 for other in others)
    assert found.reason.startswith(f"the {name} explains")
    assert all(torch.equal(value, before[key]) for key, value in pair.theirs.state_dict().items())


def test_two_that_act_together() -> None:
    """Neither is the reason alone, and both have a share."""
    pair = dropout_pair()
    first = Setup(training=replace(TRAINING, learning_rate=0.0))
    moved = {key: value + 0.01 for key, value in pair.theirs.state_dict().items()}
    second = Setup(training=replace(TRAINING, learning_rate=0.02), weights=moved)
    found = explain_runs(pair, first, second, steps=6)
    assert {share.ingredient for share in found.shares} == {"initialisation", "optimiser"}
    assert all(0.1 < share.weights < 0.5 for share in found.shares), found
    assert found.reason.startswith("no ingredient explains the difference alone")


def test_equal_runs_do_not_part() -> None:
    found = explain_runs(dropout_pair(), Setup(dropout=1), Setup(dropout=1), steps=2)
    assert (found.weights, found.shares, found.reason) == (0.0, [], "the two runs do not part")


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="steps must be an integer ≥ 1; got steps=0"):
        explain_runs(dropout_pair(), Setup(), Setup(), steps=0)
    with pytest.raises(ValueError, match=r"loading the weights of a set-up fails with RuntimeError"):
        explain_runs(dropout_pair(), Setup(weights={}), Setup(), steps=1)
