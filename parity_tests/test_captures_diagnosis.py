"""Which mistake a judgement of two captures names, and where it says that it looks for none."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

from jaxmodels.compare import Pair
from jaxmodels.compare.captures import capture_jax, capture_torch, diagnose, judge, read_capture
from jaxmodels.compare.captures.operations import OperationRecorder, function_of
from jaxmodels.compare.captures.replay import RecordedReplay, Recording
from jaxmodels.compare.result import Result
from parity_tests.toy_pairs import in_flax, in_torch, linear, load, normal, one_linear, toy


def judged(pair: Pair, folder: Path, steps: int = 0) -> Result:
    load(pair)
    a = capture_torch(pair.theirs, pair.inputs, folder / "a", steps=steps)
    b = capture_jax(pair.ours, pair.inputs, folder / "b", steps=steps, dtypes=("float32",))
    return judge(a, b)


def test_before_an_operation_in_place(tmp_path: Path) -> None:
    """ReLU overwrites what tanh gets: a changed run cannot begin with the tensors of the first."""

    def in_jax(self: Any, x: Any) -> Any:
        y = self.a(x)
        return self.b(nnx.sigmoid(y) + nnx.relu(y))

    def in_pytorch(self: Any, x: Any) -> Any:
        y = self.a(x)
        return self.b(torch.tanh(y) + self.relu(y))

    layers = {"a": torch.nn.Linear(8, 16), "relu": torch.nn.ReLU(inplace=True), "b": torch.nn.Linear(16, 4)}
    pair = toy(
        in_flax(in_jax, a=linear(8, 16), b=linear(16, 4)), in_torch(in_pytorch, **layers), normal(6, 8)
    )
    result = judged(pair, tmp_path)
    assert (
        result.diagnosis == "after a: JAX computes the sigmoid, PyTorch tanh; nnx.tanh removes the difference"
    )
    captures = read_capture(tmp_path / "a"), read_capture(tmp_path / "b")
    captures[0].runs["float32"].operations = {}
    result = judge(*captures)
    assert result.verdict == "different"
    assert any(
        "a (PyTorch on cpu) holds no operations of PyTorch in float32" in note for note in result.notes
    )


def test_without_pytorch_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tanh(model: nnx.Module, inputs: dict[str, jax.Array]) -> jax.Array:
        return jax.nn.gelu(inputs["x"])

    a = capture_torch(torch.nn.GELU(), {"x": normal(4)}, tmp_path / "a", steps=0)
    b = capture_jax(linear(1, 1), {"x": normal(4)}, tmp_path / "b", steps=0, call=tanh)
    assert judge(a, b).diagnosis == "nnx.gelu uses the tanh form; approximate=False removes the difference"
    monkeypatch.setattr(diagnose, "find_spec", lambda name: None)
    result = judge(a, b)
    assert (result.verdict, result.diagnosis) == ("different", None)
    assert (
        "no mistake was looked for: PyTorch is not installed; judge the captures where it is" in result.notes
    )


def test_of_gradients(tmp_path: Path) -> None:
    pair = toy(
        in_flax(lambda s, x: s.b(jnp.tanh(jax.lax.stop_gradient(s.a(x)))), a=linear(8, 16), b=linear(16, 4)),
        in_torch(lambda s, x: s.b(torch.tanh(s.a(x))), a=torch.nn.Linear(8, 16), b=torch.nn.Linear(16, 4)),
        normal(6, 8),
    )
    result = judged(pair, tmp_path)
    assert result.divergence is not None
    assert result.divergence.kind == "gradients"
    assert result.diagnosis is not None
    assert "JAX stops the gradient of tanh, PyTorch does not" in result.diagnosis


def test_of_a_loss(tmp_path: Path) -> None:
    pair = one_linear()
    load(pair)
    inputs = {**pair.inputs, "labels": np.array([0, -100, 3, 1])}
    call: Any = lambda model, inputs: model(inputs["x"])  # noqa: E731

    def in_jax(model: Any, inputs: Any) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(call(model, inputs), inputs["labels"])
        return jnp.where(inputs["labels"] < 0, 0, losses).mean()

    def in_pytorch(model: Any, inputs: Any) -> torch.Tensor:
        return F.cross_entropy(call(model, inputs), inputs["labels"])

    options: dict[str, Any] = {"call": call, "steps": 0}
    a = capture_torch(pair.theirs, inputs, tmp_path / "a", loss=in_pytorch, **options)
    b = capture_jax(pair.ours, inputs, tmp_path / "b", loss=in_jax, **options, dtypes=("float32",))
    result = judge(a, b)
    assert result.divergence is not None
    assert result.divergence.kind == "loss"
    assert result.diagnosis is not None
    assert "the mean over all targets" in result.diagnosis


def test_only_functions_that_compute_with_tensors_are_run() -> None:
    assert function_of("torch.nn.functional.gelu") is F.gelu
    for name in (
        "torch.load",
        "torch.save",
        "torch.hub.load",
        "torch.Tensor.__init__.__globals__",
        "os.system",
    ):
        with pytest.raises(ValueError, match="no function of PyTorch that computes with tensors"):
            function_of(name)


class Everything(torch.nn.Module):
    """Arguments of every kind: slices, types, infinities, constants of its own, a tensor that is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.table = torch.arange(4.0)  # no buffer

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.layer(x)[..., None, 1:].squeeze(-2)
        mask = torch.ones(y.shape, dtype=torch.bool, device=x.device).tril()
        y = y.masked_fill(~mask, -float("inf")).softmax(dim=-1)
        z = torch.zeros_like(y)
        z[:, 0] = 1
        z.add_(torch.from_numpy(np.ones(3)).to(y))
        largest = torch.max(y, -1)
        return {"y": y * z + self.table[1:].to(y.dtype), "largest": largest.values, "at": largest.indices}


def test_a_recording_repeats_the_run(tmp_path: Path) -> None:
    model, inputs = Everything().double(), {"x": torch.randn(3, 4).double()}
    path = capture_torch(model, inputs, tmp_path / "a", dtypes=("float64",), steps=0)
    capture = read_capture(path)
    run = capture.runs["float64"]
    recording = Recording(run.operations["forward"], run, capture.inputs)
    replay = RecordedReplay(recording, unit="", target=None)
    for array, expected in zip(replay.arrays, run.outputs.values(), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert [one.name for one in replay.operations][:3] == ["linear", "getitem", "squeeze"]
    gradients = Recording(run.operations["loss"], run, capture.inputs).gradients({}, capture.learned)
    assert gradients.keys() == run.gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, run.gradients[name], rtol=1e-12)


def test_what_cannot_be_written_down_is_named() -> None:
    class Odd:
        """An index of a class of the user's."""

        def __index__(self) -> int:
            return 1

    x = torch.ones(3)
    recorder = OperationRecorder(torch.nn.Identity(), {"x": x}, "forward")
    result = recorder.run(lambda: x.unsqueeze(0)[0, Odd()] + 1)
    content = recorder.content({"": result})
    assert content == {"problem": "torch.Tensor.__getitem__: it gets a Odd, which a capture cannot hold"}
