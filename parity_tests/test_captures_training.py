"""Captures in training mode, with an optimiser of one's choice, and of models that choose tokens."""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxmodels.compare import Pair, Training
from jaxmodels.compare.captures import capture_jax, capture_torch, command, judge, read_capture
from jaxmodels.compare.result import Result
from parity_tests.toy_pairs import in_flax, in_torch, linear, load, normal, one_linear, toy


def judged(pair: Pair, folder: Path, theirs: dict[str, Any], ours: dict[str, Any], **shared: Any) -> Result:
    load(pair)
    a = capture_torch(pair.theirs, pair.inputs, folder / "a", **shared, **theirs)
    b = capture_jax(pair.ours, pair.inputs, folder / "b", dtypes=("float32",), **shared, **ours)
    return judge(a, b)


def normed(momentum: float) -> Pair:
    return toy(
        in_flax(lambda self, x: self.norm(x), norm=nnx.BatchNorm(4, momentum=momentum, rngs=nnx.Rngs(0))),
        in_torch(
            lambda self, x: self.drop(self.norm(x)), norm=torch.nn.BatchNorm1d(4), drop=torch.nn.Dropout(0.5)
        ),
        normal(8, 4),
    )


class TestTrainingMode:
    def test_running_statistics_are_compared_and_dropout_is_off(self, tmp_path: Path) -> None:
        """Flax's variance is biased; that alone is no fault."""
        result = judged(normed(0.9), tmp_path, {}, {}, mode="train", steps=1)
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert {s.name: s.convention for s in result.statistics} == {
            "norm.running_mean": False,
            "norm.running_var": True,
        }
        assert "drop: the rate of dropout is set to 0" in result.notes
        # The buffers are put back after every run.
        run = read_capture(tmp_path / "a").runs["float32"]
        np.testing.assert_array_equal(run.weights["norm.running_mean"], np.zeros(4))

    def test_buffers_are_put_back_after_every_call(self, tmp_path: Path) -> None:
        class Counting(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("count", torch.zeros(1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.count += 1
                return x * self.count

        inputs = {"x": np.ones(3)}
        path = capture_torch(
            torch.nn.Sequential(torch.nn.Linear(3, 3), Counting()), inputs, tmp_path, mode="train"
        )
        run = read_capture(path).runs["float32"]
        np.testing.assert_allclose(run.losses[0], np.mean(run.outputs[""] ** 2), rtol=1e-6)

    def test_a_momentum_that_was_taken_over_is_named(self, tmp_path: Path) -> None:
        result = judged(normed(0.1), tmp_path, {}, {}, mode="train", steps=0)
        assert result.divergence is not None
        assert (result.divergence.layer, result.divergence.kind) == ("norm", "statistics")
        assert result.diagnosis is not None
        assert "momentum=0.9 in JAX" in result.diagnosis

    def test_captures_of_other_modes_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"the same mode; a .* has mode='eval', b .* has mode='train'"):
            judged(normed(0.9), tmp_path, {"mode": "eval"}, {"mode": "train"}, steps=0)


def adamw(named: list[tuple[str, torch.Tensor]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for _, p in named], lr=0.01, weight_decay=0.1)


class TestOptimizer:
    def test_one_by_name(self, tmp_path: Path) -> None:
        """The masks by name: JAX's names are PyTorch's where a table says so."""
        pair = one_linear()
        training = Training(
            optimizer="lion", learning_rate=0.1, weight_decay=1.0, decayed=lambda name: name == "layer.weight"
        )
        result = judged(pair, tmp_path, {}, {"table": pair.table}, training=training, steps=2)
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert (len(result.weights), result.weight_steps) == (2, 2)

    @pytest.mark.parametrize(("decay", "verdict"), [(0.1, "equal"), (0.5, "different")])
    def test_the_users_own(self, tmp_path: Path, decay: float, verdict: str) -> None:
        """Each side brings its own; the judge sees what they make of the weights."""
        ours = Training(optimizer_ours=optax.adamw(0.01, weight_decay=decay))
        theirs = Training(optimizer_theirs=adamw)
        result = judged(one_linear(), tmp_path, {"training": theirs}, {"training": ours}, steps=3)
        assert result.verdict == verdict, (result.divergence, result.reason)
        assert result.divergence is None or result.divergence.kind == "training"

    @pytest.mark.parametrize(
        ("theirs", "ours", "note"),
        [
            ("adafactor", "adafactor", "optax's adafactor is another one than torch.optim's"),
            ("sgd", "adam", "the captures were trained with other settings"),
        ],
    )
    def test_weights_of_unlike_optimizers_are_not_compared(
        self, tmp_path: Path, theirs: str, ours: str, note: str
    ) -> None:
        options: list[dict[str, Any]] = [{"training": Training(optimizer=name)} for name in (theirs, ours)]
        result = judged(one_linear(), tmp_path, *options, steps=1)
        assert (result.verdict, result.weights) == ("equal", [])
        assert any(note in one for one in result.notes)


class Routed(NamedTuple):
    indices: Any
    margin: Any


def choosing(order: tuple[int, int], **options: Any) -> Pair:
    """A model that keeps two of five tokens; JAX's router takes those of `order`."""

    def in_jax(self: Any, x: Any, routing: Any = None) -> Any:
        return self.layer(jnp.take(x, jnp.asarray(order if routing is None else routing[0][0]), 1))

    def in_pytorch(self: Any, x: Any, routing: Any = None) -> Any:
        return self.layer(x[:, torch.tensor([0, 2]) if routing is None else routing[0][0]])

    ours, theirs = in_flax(in_jax, layer=linear(4, 4)), in_torch(in_pytorch, layer=torch.nn.Linear(4, 4))
    return toy(ours, theirs, normal(1, 5, 4), **options)


def route(order: tuple[int, int], margin: float) -> Any:
    return lambda model, inputs: [Routed(np.array([order]), np.array([margin]))]


class TestRouting:
    @staticmethod
    def options(
        order: tuple[int, int], margin: float = 0.0, **more: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        call: Any = lambda model, inputs, routing: model(inputs["x"], routing)  # noqa: E731
        shared = {"routers": ("router",), "call": call, "steps": 1}
        theirs = lambda *_: [Routed(torch.tensor([[0, 2]]), torch.tensor([margin]))]  # noqa: E731
        return {**shared, "routing": theirs}, {**shared, "routing": route(order, margin), **more}

    def test_choices_that_agree(self, tmp_path: Path) -> None:
        result = judged(choosing((0, 2)), tmp_path, *self.options((0, 2)))
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert result.routing is not None
        assert (result.routing.routers[0].choices, result.routing.differing) == (1, 0)

    def test_a_toss_up_is_repeated(self, tmp_path: Path) -> None:
        result = judged(choosing((0, 3)), tmp_path, *self.options((0, 3)))
        assert result.verdict == "cannot be judged"
        assert result.reason is not None
        assert "capture JAX again with routing_from" in result.reason
        result = judged(choosing((0, 3)), tmp_path, *self.options((0, 3), routing_from=tmp_path / "a"))
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert result.routing is not None
        assert result.routing.differing == 1

    def test_a_clear_choice_that_is_overturned(self, tmp_path: Path) -> None:
        result = judged(choosing((0, 1)), tmp_path, *self.options((0, 1), margin=0.5))
        assert result.divergence is not None
        assert (result.divergence.layer, result.divergence.kind) == ("router", "routing")

    def test_the_command_takes_the_routers_of_a_pair(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (theirs, ours), file = self.options((0, 3)), tmp_path / "pair.py"
        calls: dict[str, Any] = {"call_ours": ours["call"], "call_theirs": theirs["call"]}
        routing = {"routing_ours": ours["routing"], "routing_theirs": theirs["routing"]}
        pair = choosing((0, 3), **calls, **routing, routers=("router",))
        file.write_text("def pair(): ...\n")
        monkeypatch.setattr(command, "read_pairs", lambda path: [pair])
        a, b = tmp_path / "a", tmp_path / "b"
        options: dict[str, Any] = {"steps": 1, "mode": "train", "optimizer": "sgd"}
        command.write(file, side="torch", output=a, **options)
        command.write(file, side="jax", output=b, routing_from=a, **options)
        settings = read_capture(b).settings
        assert (settings["mode"], settings["training"]["optimizer"]) == ("train", "sgd")
        result = judge(a, b)
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert result.routing is not None
        assert result.routing.differing == 1
        with pytest.raises(ValueError, match="routing_from is for the JAX side, which repeats PyTorch's"):
            command.write(file, side="torch", output=a, routing_from=b)

    def test_choices_of_other_routers_are_refused(self, tmp_path: Path) -> None:
        theirs, ours = self.options((0, 2), routing_from=tmp_path / "a")
        with pytest.raises(
            ValueError, match=r"routing_from must be a capture with the routers other; a .* has router"
        ):
            judged(choosing((0, 2)), tmp_path, theirs, {**ours, "routers": ("other",)})
        with pytest.raises(
            ValueError, match="routing must return one choice for each of the 2 routers; got 1"
        ):
            judged(choosing((0, 2)), tmp_path, {**theirs, "routers": ("a", "b")}, ours)

    @pytest.mark.usefixtures("unchecked_types")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"routers": ("a",)}, "routing and routers belong together"),
            ({"routing_from": "a"}, "routing_from needs routing and routers"),
            ({"mode": "test"}, "mode must be 'eval' or 'train'; got mode='test'"),
            ({"step": 3}, "capture_jax does not take step; it takes name, dtypes, "),
        ],
    )
    def test_wrong_arguments(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            capture_jax(linear(2, 2), {"x": np.ones((1, 2))}, tmp_path / "b", **options)
        assert not (tmp_path / "b").exists()
