"""A capture of the JAX side, written and judged where PyTorch is not installed, as in all tests of this folder."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmodels.compare.captures import capture_jax, judge, read_capture


INPUTS = {"x": np.random.default_rng(0).normal(size=(4, 8))}


class Net(nnx.Module):
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.layer = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(jnp.tanh(self.layer(x))) * self.scale


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return capture_jax(Net(), INPUTS, tmp_path_factory.mktemp("captures") / "net")


def test_holds_what_the_model_computed(capture: Path) -> None:
    read = read_capture(capture)
    assert (read.side, read.name, set(read.runs)) == ("jax", "Net", {"float32", "float64"})
    run = read.runs["float64"]
    weights = run.weights["layer.kernel"]
    assert run.outputs[""].dtype == weights.dtype == np.float64
    np.testing.assert_allclose(
        run.outputs[""], np.tanh(INPUTS["x"] @ weights + run.weights["layer.bias"]), rtol=1e-12
    )
    assert {(e.path, e.kind) for e in run.events} >= {
        ("layer", "input"),
        ("layer", "output"),
        ("dropout", "output"),
    }
    assert len(run.losses) == 3
    np.testing.assert_allclose(run.losses[0], np.mean(run.outputs[""] ** 2))
    moved = np.abs(run.weights_after["layer.kernel"] - weights)
    assert 0 < moved.max() <= 3.1e-3  # three steps of AdamW
    assert run.gradients.keys() == run.weights_after.keys() == {"layer.kernel", "layer.bias"}
    assert read.runs["float32"].products["matmul"] < 2e-6


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "equal"), (1 + 1e-5, "different")])
def test_two_devices_of_one_framework_are_compared(
    capture: Path, tmp_path: Path, scale: float, verdict: str
) -> None:
    """The first capture's float64 is the arbiter of both."""
    other = capture_jax(Net(scale), INPUTS, tmp_path / "other", dtypes=("float32",), steps=0)
    result = judge(capture, other)
    assert result.verdict == verdict, result.reason
    assert any("both captures are of JAX" in note for note in result.notes)


def test_a_random_model_is_refused(tmp_path: Path) -> None:
    class Random(Net):
        def __call__(self, x: jax.Array) -> jax.Array:
            return x + jax.random.normal(self.dropout.rngs(), x.shape)

    with pytest.raises(ValueError, match="returns other values when it runs with other random keys"):
        capture_jax(Random(), INPUTS, tmp_path / "random", dtypes=("float32",))
    assert not (tmp_path / "random").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dtypes": ("float16",)},
            r"dtypes must be some of float64, float32, bfloat16; got dtypes=\('float16',\)",
        ),
        ({"dtypes": "float32"}, "dtypes must be some of"),
        ({"steps": -1}, "steps must be an integer ≥ 0; got steps=-1"),
        ({"limit": 0}, "limit must be a number of values ≥ 1, or None; got limit=0"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capture_jax(Net(), INPUTS, tmp_path / "net", **arguments)
