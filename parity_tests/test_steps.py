"""Training runs side by side: equal curves, other batches at every step, and mistakes that one batch does not show."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxmodels.compare import Pair, compare, engine, optax_optimizers, report
from jaxmodels.compare.pair import Inputs
from jaxmodels.compare.subjects import MODEL_NAMES
from parity_tests.small_pairs import net_pair, tiny_pair


def fresh_batch(step: int) -> Inputs:
    return {"x": np.random.default_rng(step).normal(size=(5, 3, 6, 6))}


def stream_pair(**changes: Any) -> Pair:
    """The small network with other inputs at every step; the first are those of `inputs`."""
    return replace(net_pair(), inputs=fresh_batch(0), **{"batches": fresh_batch, **changes})


@pytest.fixture
def no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers run one operation at a time, and that is slow; they have tests of their own."""
    monkeypatch.setattr(engine, "_jax_events", lambda subject, outputs: {})


@pytest.fixture
def optimized() -> Iterator[None]:
    """Programs as users run them; without optimisation XLA adds the terms of a loss one after the other."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("no_layers", "optimized")
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_float64_losses_stay_equal(name: str) -> None:
    """Fifty steps on real data: within 1e-9, and also within the noise of float64, which is far less."""
    result = compare(tiny_pair(name), dtype="float64", steps=50)
    assert result.ok, result.divergence
    losses = result.losses
    assert len(losses) == 50
    np.testing.assert_allclose(losses.jax, losses.pytorch, rtol=1e-9)
    assert np.mean(losses.jax[-5:]) < np.mean(losses.jax[:5])
    # Other batches make other losses: the curve is not that of one batch, which falls in small steps.
    assert np.abs(np.diff(losses.jax)).max() > 0.01 * losses.jax[0]


def test_losses_are_those_of_the_batches() -> None:
    """Without learning the loss of a step is that of its batch at the initial weights."""
    subject = stream_pair()
    result = compare(subject, dtype="float64", steps=3, learning_rate=0.0)
    with torch.no_grad():
        inputs = [torch.from_numpy(fresh_batch(step)["x"]) for step in range(3)]
        expected = [subject.theirs.double()(x).square().mean().item() for x in inputs]
    np.testing.assert_allclose(result.losses.jax, expected, rtol=1e-12)
    assert len(set(expected)) == 3


def test_every_run_starts_alike_and_learns() -> None:
    losses = compare(stream_pair(), steps=8, learning_rate=1e-2).losses
    curves = {name: curve for name, curve in asdict(losses).items() if name != "threads"}
    for name, curve in curves.items():
        np.testing.assert_allclose(curve, losses.pytorch_float64, rtol=1e-4, err_msg=name)
    assert curves["pytorch"] == curves["pytorch_float32"]
    assert losses.jax[-1] < losses.jax[0]


def test_one_program_serves_all_steps() -> None:
    traced = []

    def loss_ours(model, inputs):
        traced.append(1)
        return jnp.square(model(inputs["x"])).mean()

    compare(stream_pair(loss_ours=loss_ours), steps=6)
    assert len(traced) == 1


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_five_see_other_data_at_every_step(name: str) -> None:
    subject = tiny_pair(name)
    assert subject.batches is not None
    batches = [subject.batches(step) for step in (0, 1, 2, 1000)]
    for key, first in subject.inputs.items():
        assert {(batch[key].shape, batch[key].dtype) for batch in batches} == {(first.shape, first.dtype)}
        np.testing.assert_array_equal(batches[0][key], first)
    values = [tuple(array.tobytes() for array in batch.values()) for batch in batches]
    assert len(set(values)) == 4


def test_batches_unlike_the_inputs() -> None:
    subject = stream_pair(batches=lambda step: {"x": np.zeros((5 - step, 3, 6, 6))})
    expected = r"batches\(1\) must have the names and shapes of inputs, which are {'x': \(5, 3, 6, 6\)}; got {'x': \(4"
    with pytest.raises(ValueError, match=expected):
        compare(subject, steps=2)


@pytest.mark.parametrize("count", [1, 3])
def test_threads_are_given_back(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    used: list[int] = []

    def call_theirs(model, inputs):
        used.append(torch.get_num_threads())
        if len(used) > 100:
            raise KeyboardInterrupt
        return model(inputs["x"])

    try:
        subject = stream_pair(call_theirs=call_theirs)
        assert compare(subject, steps=2).losses.threads == (count, 2 if count == 1 else 1)
        assert set(used) == {1, 2} if count == 1 else {1, 3}
        with pytest.raises(KeyboardInterrupt):
            compare(subject, steps=50)
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("no_layers")
def test_labels_of_the_first_batch_baked_into_the_program(dtype: str) -> None:
    """What jax.jit reads from outside its arguments stays as it was when the program was made."""
    subject = tiny_pair("scalable_vit")
    assert subject.loss_ours is not None
    right = subject.loss_ours
    labels = jnp.asarray(subject.inputs["labels"])
    subject = replace(subject, loss_ours=lambda model, x: right(model, {**x, "labels": labels}))
    assert compare(replace(subject, batches=None), dtype=dtype, steps=2).ok
    result = compare(subject, dtype=dtype, steps=2)
    assert result.divergence is not None
    assert (
        result.divergence.detail
        == "outputs and gradients of the first batch agree, loss 2 at equal weights does not"
    )


def coupled_decay(
    learning_rate: float, *, weight_decay: float, mask: None, **adam: Any
) -> optax.GradientTransformation:
    """L2 regularisation, as Adam had it before AdamW."""
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.adam(learning_rate, **adam))


def late_correction(learning_rate: float, **options: Any) -> optax.GradientTransformation:
    """The bias correction counts from 0 where it should count from 1, that is one step too far."""
    adamw = optax.adamw(learning_rate, **options)

    def init(params):
        return jax.tree.map(lambda x: x + 1 if x.dtype == jnp.int32 else x, adamw.init(params))

    return optax.GradientTransformation(init, adamw.update)


@pytest.mark.parametrize("optimizer", [coupled_decay, late_correction])
def test_wrong_optimizer(optimizer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    right = compare(stream_pair(), dtype="float64", steps=4)
    assert right.ok, right.divergence
    mistaken = type("Optax", (), {"adamw": staticmethod(optimizer)})
    monkeypatch.setattr(optax_optimizers, "optax", mistaken)
    result = compare(stream_pair(), dtype="float64", steps=4)
    assert all(check.ok for check in result.gradients)
    assert result.divergence is not None
    assert "after the optimiser steps" in result.divergence.detail
    # The curves part too, one step after the weights; at equal weights the losses are equal.
    assert [check.name for check in result.loss_checks if not check.ok] == ["loss 2", "loss 3", "loss 4"]


class TestFloat32:
    """One gradient that a kink turns round is no mistake in float32; float64 never sees the other side of it."""

    def subject(self, step: int) -> Pair:
        """JAX's gradient differs on the batch of one step alone; no loss does at equal weights."""
        marked = jnp.asarray(fresh_batch(step)["x"].transpose(0, 2, 3, 1))

        def loss_ours(model, inputs):
            loss = jnp.square(model(inputs["x"])).mean()
            other_side = jnp.allclose(inputs["x"], marked)
            return jnp.where(other_side, 2 * loss - jax.lax.stop_gradient(loss), loss)

        return stream_pair(
            loss_ours=loss_ours, loss_theirs=lambda model, inputs: model(inputs["x"]).square().mean()
        )

    def test_parting_late_is_no_difference(self) -> None:
        result = compare(self.subject(5), steps=10)
        assert result.ok, result.divergence
        assert result.weight_steps == 3
        gap = np.abs(np.subtract(result.losses.jax, result.losses.pytorch))
        assert gap[:6].max() < 1e-6 < 1e-5 < gap[6:].max()
        (note,) = result.notes
        assert note.startswith("loss 7: the two runs have drifted apart (by ")

    def test_nor_in_float64_but_it_is_seen(self) -> None:
        result = compare(self.subject(5), dtype="float64", steps=10)
        assert result.weight_steps == 10
        failed = [check.name for check in result.loss_checks if not check.ok]
        assert failed == ["loss 7", "loss 8", "loss 9", "loss 10"]

    def test_parting_early_is_a_difference(self) -> None:
        assert not compare(self.subject(1), steps=3).ok


@pytest.mark.usefixtures("no_layers")
def test_a_clear_choice_overturned_on_a_later_batch() -> None:
    subject = tiny_pair("colt5")
    first = subject.to_ours(subject.inputs)["images"]

    def routing_ours(model, inputs):
        shift = jnp.where(jnp.allclose(inputs["images"], first), 0, 1)
        return [routed._replace(indices=routed.indices + shift) for routed in model.routing(inputs["images"])]

    result = compare(replace(subject, routing_ours=routing_ours), dtype="float64", steps=2)
    assert result.routing is not None
    assert result.routing.differing == 0
    assert result.divergence is not None
    assert result.divergence.layer == "transformer.layers.0.0.q_router"
    assert "choices differ on the batch of step 2, by margins up to" in result.divergence.detail


def test_losses_that_overflow() -> None:
    """Both sides reach infinity at the second step: equal, and no warning."""

    def batches(step: int) -> Inputs:
        return {"x": fresh_batch(step)["x"] * (1e30 if step == 1 else 1.0)}

    result = compare(stream_pair(batches=batches), steps=2)
    assert result.losses.jax[1] == np.inf
    assert all(check.ok for check in result.loss_checks), result.loss_checks


def test_progress() -> None:
    seen: list[tuple[str, float]] = []
    compare(net_pair(), steps=3, progress=lambda stage, share: seen.append((stage, share)))
    assert [stage for stage, _ in seen] == [
        "weights", "outputs", "layers", "gradients", "step 2 of 3", "step 3 of 3"
    ]  # fmt: skip
    shares = [share for _, share in seen]
    assert shares == sorted(set(shares))
    assert 0 <= shares[0] < shares[-1] < 1


@pytest.mark.parametrize("count", [2, 50])
def test_report(count: int, tmp_path: Path) -> None:
    result = compare(stream_pair(), steps=count)
    report.write([result], tmp_path)
    (model,) = json.loads((tmp_path / "report.json").read_text())["models"]
    assert model["losses"] == {**asdict(result.losses), "threads": list(result.losses.threads)}
    assert (
        len(model["losses"]["jax"]) == len(model["losses"]["pytorch"]) == len(model["loss_checks"]) == count
    )
    assert model["loss_error"] < 1e-5
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert f"the loss before each of {count} optimiser steps, and the weights after {min(count, 3)}" in page
