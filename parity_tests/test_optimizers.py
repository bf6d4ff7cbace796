"""The optimisers by name and in pairs: what both libraries mean by them, and the sentence where they differ."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

from jaxmodels.compare import Pair, Training, compare, compare_optimizers
from parity_tests.toy_pairs import in_flax, in_torch, linear, normal, toy


def small_pair(**options: Any) -> Pair:
    torch.manual_seed(0)
    return toy(
        in_flax(lambda self, x: self.b(jax.nn.tanh(self.a(x))), a=linear(6, 5), b=linear(5, 3)),
        in_torch(
            lambda self, x: self.b(torch.tanh(self.a(x))), a=torch.nn.Linear(6, 5), b=torch.nn.Linear(5, 3)
        ),
        normal(7, 6),
        batches=lambda step: {"x": normal(7, 6, seed=step)},
        **options,
    )


NAMED = {
    "sgd": Training(optimizer="sgd", momentum=0.9, nesterov=True, weight_decay=0.1, learning_rate=0.1),
    "adam": Training(
        optimizer="adam", weight_decay=0.1, decayed=lambda name: name[0] == "w", clip_value=0.01
    ),
    "adamw": Training(warmup_steps=2, schedule="cosine", total_steps=9, accumulate=2, ema_decay=0.9),
    "lion": Training(optimizer="lion", weight_decay=0.1),
}
# Where optax and torch.optim mean different things: what the report says of them.
UNLIKE = {
    "dampening": (
        Training(optimizer="sgd", momentum=0.9, dampening=0.5, learning_rate=0.1),
        "PyTorch dampens new gradients by 0.5; optax's momentum has no dampening",
    ),
    "clipping": (
        Training(optimizer="sgd", clip_norm=0.1, learning_rate=0.1),
        "PyTorch's clip_grad_norm_ adds 1e-6 to the norm, optax does not",
    ),
    "adafactor": (
        Training(optimizer="adafactor", learning_rate=0.9, weight_decay=0.1),
        "optax factors the second moments .* PyTorch always; PyTorch limits the learning rate to .*; weight decay: JAX "
        "takes it from the weights and does not multiply it by the learning rate.*",
    ),
}


def weights() -> dict[str, np.ndarray]:
    return {"w": normal(4, 3), "b": normal(3, seed=1)}


def gradients(count: int = 6) -> list[dict[str, np.ndarray]]:
    return [{"w": normal(4, 3, seed=10 + i), "b": 0.1 * normal(3, seed=50 + i)} for i in range(count)]


@pytest.mark.parametrize("name", NAMED)
def test_libraries_agree(name: str) -> None:
    found = compare_optimizers(NAMED[name], weights(), gradients())
    assert found.ok, found
    assert found.updates == 6 // NAMED[name].accumulate
    assert found.tolerance < 1e-11
    sizes = [effect for _, effect in found.effects]
    assert sizes == sorted(sizes, reverse=True)
    assert name not in ("adam", "adamw") or any("inside the square root" in said for said, _ in found.effects)


@pytest.mark.parametrize("name", UNLIKE)
def test_libraries_differ(name: str) -> None:
    training, sentence = UNLIKE[name]
    found = compare_optimizers(training, weights(), gradients())
    assert not found.ok
    assert found.explanation is not None
    assert re.fullmatch(sentence, found.explanation), found.explanation


@pytest.mark.parametrize("training", [NAMED["adamw"], UNLIKE["adafactor"][0]], ids=["adamw", "adafactor"])
def test_models_are_compared_under_it(training: Training) -> None:
    result = compare(small_pair(), dtype="float64", steps=6, training=replace(training, clip_norm=0.1))
    assert result.ok, (result.divergence, result.reason)
    assert result.optimizers is not None
    assert any("torch.optim's on both sides" in note for note in result.notes)


def test_effects_of_the_loop() -> None:
    training = replace(NAMED["adamw"], clip_norm=1.0, warmup_steps=0)
    effects = dict(compare_optimizers(training, weights(), gradients()).effects)
    words = " ".join(effects)
    for part in (
        "added up",
        "of each batch is clipped",
        "counts the first update as 1",
        "moving average starts",
    ):
        assert part in words


def adamw(named: list, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(named, lr=0.01, **options)


def clipped(named: list) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(named, lr=0.1)
    parameters = [parameter for _, parameter in named]

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def scheduled(named: list) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(named, lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def decay_2d(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, tree)


# JAX's optimiser, PyTorch's, and what is said; None where they agree.
USERS = {
    "equal": (optax.adamw(0.01, weight_decay=0.01), adamw, None),
    "epsilon": (
        optax.adamw(0.01, eps=0.0, eps_root=1e-8, weight_decay=0.01), adamw, "inside the square root in JAX"
    ),
    "defaults": (optax.adamw(0.01), adamw, r"weight decay is 0.0001 in JAX \(the default of optax.adamw\)"),
    "coupled": (
        optax.chain(optax.add_decayed_weights(0.01), optax.adam(0.01)), adamw, r"JAX adds it to the gradient \(L2\)"
    ),
    "mask": (optax.adamw(0.01, weight_decay=0.01, mask=decay_2d), adamw, "does not decay parameters of one axis"),
    "two": (optax.adamw(0.01, b2=0.95), adamw, "weight decay is 0.0001.*b2 is 0.95 in JAX and 0.999"),
    "average": (
        optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1)),
        lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9), "JAX averages the gradients",
    ),
    "own norms": (
        optax.chain(optax.transforms.partition({"w": optax.clip_by_global_norm(0.5), "b": optax.clip_by_global_norm(0.5)}, {"w": "w", "b": "b"}), optax.sgd(0.1)),
        clipped, "clips each parameter's gradient by its own norm",
    ),
    "not clipped": (optax.sgd(0.1), clipped, "PyTorch clips the gradients, JAX does not"),
    "schedule": (optax.sgd(lambda count: 0.1 * 0.5 ** (count + 1)), scheduled, "JAX's schedule is one update ahead"),
    "ascent": (optax.scale(0.1), lambda named: torch.optim.SGD(named, lr=0.1), "adds the gradient"),
}  # fmt: skip


@pytest.mark.parametrize("name", USERS)
def test_a_users_optimizers(name: str) -> None:
    ours, theirs, sentence = USERS[name]
    found = compare_optimizers(
        Training(optimizer_ours=ours, optimizer_theirs=theirs), weights(), gradients(4)
    )
    assert found.ok == (sentence is None), found
    if sentence is not None:
        assert found.first_difference is not None
        assert found.explanation is not None
        assert re.search(sentence, found.explanation), found.explanation


def test_a_difference_that_is_not_known() -> None:
    training = Training(optimizer_ours=optax.adagrad(0.01), optimizer_theirs=adamw)
    found = compare_optimizers(training, weights(), gradients(2))
    assert (found.ok, found.first_difference, found.explanation) == (False, 1, None)


def test_the_verdict_names_the_optimizer() -> None:
    training = Training(optimizer_ours=optax.adamw(0.01), optimizer_theirs=adamw)
    result = compare(small_pair(), steps=3, training=training)
    assert result.divergence is not None
    assert (result.divergence.layer, result.divergence.kind) == ("(optimizer)", "optimizer")
    assert result.diagnosis is not None
    assert "0.0001 in JAX" in result.diagnosis
    right = replace(training, optimizer_ours=optax.adamw(0.01, weight_decay=0.01))
    assert compare(small_pair(), steps=3, training=right).ok


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sophia"}, r"optimizer must be one of 'sgd', .*; got optimizer='sophia'"),
        ({"learning_rate": -1.0}, r"learning_rate must be ≥ 0; got learning_rate=-1\.0"),
        ({"accumulate": 0}, r"accumulate must be ≥ 1; got accumulate=0"),
        (
            {"schedule": "cosine"},
            r"schedule='cosine' needs total_steps > warmup_steps=0; got total_steps=None",
        ),
        (
            {"optimizer_theirs": adamw},
            r"optimizer_ours and optimizer_theirs belong together; give both or none",
        ),
        ({"momentum": 0.9}, r"are those of optimizer='sgd'; got optimizer='adamw'"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_optimizers(Training(**options), weights(), gradients(1))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (
            lambda named: named[0].lr,
            r"optimizer_theirs fails with AttributeError: .*returns a torch.optim.Optimizer",
        ),
        (lambda named: None, r"optimizer_theirs returns a NoneType; it gets a list of names"),
    ],
)
def test_an_optimizer_that_fails(theirs: Callable, message: str) -> None:
    training = Training(optimizer_ours=optax.sgd(0.1), optimizer_theirs=theirs)
    with pytest.raises(ValueError, match=message):
        compare_optimizers(training, weights(), gradients(1))


def test_sums_in_float32() -> None:
    """What optax rounds to float32 inside is no difference, and said."""
    multi = optax.MultiSteps(optax.sgd(0.1), 2)  # its sums are in float32
    ours = optax.GradientTransformation(multi.init, multi.update)
    training = Training(
        optimizer_ours=ours, optimizer_theirs=lambda named: torch.optim.SGD(named, lr=0.1), accumulate=2
    )
    found = compare_optimizers(training, weights(), gradients())
    assert found.ok, found
    assert 1e-12 < found.error < found.tolerance < 1e-5
    assert found.note is not None
    assert found.note.startswith("optax computes in float32 inside")
    added = replace(training, optimizer_theirs=lambda named: torch.optim.SGD(named, lr=0.2))
    assert not compare_optimizers(added, weights(), gradients()).ok
