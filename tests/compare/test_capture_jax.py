"""A capture of the JAX side, written and judged where PyTorch is not installed, as in all tests of this folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from jaxmodels.compare.captures import capture_jax, files, judge, read_capture
from jaxmodels.compare.captures.files import write_capture
from jaxmodels.compare.captures.options import check_inputs
from jaxmodels.convert.files import write_safetensors


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
    y = run.outputs[""]
    first_gradient = (2 * y * (1 - y**2)).sum(axis=0) / y.size
    np.testing.assert_allclose(run.gradients["layer.bias"], first_gradient, rtol=1e-10)
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
            r"dtypes must be some of float32, float64, bfloat16; got dtypes=\('float16',\)",
        ),
        ({"dtypes": "float32"}, "dtypes must be some of"),
        ({"steps": -1}, "steps must be an integer ≥ 0; got steps=-1"),
        ({"limit": 0}, "limit must be a number of values ≥ 1, or None; got limit=0"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        capture_jax(Net(), INPUTS, tmp_path / "net", **arguments)


class TestFolder:
    """What is wrong with a folder is said in one sentence."""

    @pytest.fixture
    def copied(self, capture: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(capture, tmp_path / "copy"))

    def test_is_no_capture(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no such capture"):
            read_capture(tmp_path / "nothing")
        with pytest.raises(ValueError, match=r"is no capture: it has no capture\.json"):
            read_capture(tmp_path)
        (tmp_path / "capture.json").write_text("{")
        with pytest.raises(ValueError, match="is damaged or not a capture's"):
            read_capture(tmp_path)

    def test_is_of_another_version(self, copied: Path) -> None:
        index = copied / "capture.json"
        content = json.loads(index.read_text())
        index.write_text(json.dumps({**content, "version": 3}))
        with pytest.raises(
            ValueError, match=r"must be a jaxmodels capture of version 2; it is .* of version 3"
        ):
            read_capture(copied)
        runs = {**content["runs"], "float32": {**content["runs"]["float32"], "events": "x"}}
        index.write_text(json.dumps({**content, "runs": runs}))
        with pytest.raises(ValueError, match="is damaged: ValueError not enough values to unpack"):
            read_capture(copied)
        index.write_text(json.dumps({key: value for key, value in content.items() if key != "files"}))
        with pytest.raises(ValueError, match="is damaged: it lists no files; capture again"):
            read_capture(copied)
        del content["settings"]
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="is damaged: KeyError 'settings'; capture again"):
            read_capture(copied)

    def test_is_incomplete_or_damaged(self, copied: Path) -> None:
        file = copied / "float32.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match="its checksum differs; capture again"):
            read_capture(copied)
        file.unlink()
        with pytest.raises(ValueError, match=r"is incomplete: float32\.safetensors is missing"):
            read_capture(copied)

    def test_is_written_completely_or_not_at_all(self, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An earlier capture stays as it was; a later one leaves none of its files."""
        before = {path.name: path.read_bytes() for path in copied.iterdir()}
        read = read_capture(copied)
        del read.runs["float64"]

        def fail(path: Path, arrays: Any) -> None:
            if path.name.startswith(".float32"):
                raise OSError("no space left on device")
            write_safetensors(path, arrays)

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_safetensors", fail)
            with pytest.raises(OSError, match="no space left"):
                write_capture(read, copied)
        assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
        write_capture(read, copied)
        assert {path.name for path in copied.iterdir()} == {
            "capture.json",
            "inputs.safetensors",
            "float32.safetensors",
        }

    def test_holds_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("")
        with pytest.raises(ValueError, match="path must be a new folder or an earlier capture"):
            capture_jax(Net(), INPUTS, tmp_path)
        with pytest.raises(ValueError, match="path must be a folder"):
            capture_jax(Net(), INPUTS, tmp_path / "thesis.txt")

    def test_keeps_every_type_of_number(self, copied: Path) -> None:
        read = read_capture(copied)
        arrays = {
            "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
            "complex128": np.array([[1 + 2j]]),
            "scalar": np.float32(2)[()] * np.ones(()),
            "bfloat16 scalar": np.array(2, ml_dtypes.bfloat16),
            "bool": np.array([True, False]),
            "int8": np.arange(4, dtype=np.int8).reshape(2, 2).T,
            "empty": np.empty((0, 3)),
        }
        read.inputs = arrays
        write_capture(read, copied)
        for name, array in read_capture(copied).inputs.items():
            assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
            np.testing.assert_array_equal(array, arrays[name])


def test_inputs_need_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inputs must be a dict of arrays by name; got a list"):
        check_inputs([1])
    with pytest.raises(
        ValueError, match=r"model must be an nnx\.Module; got a str; of other libraries, give"
    ):
        capture_jax("net", INPUTS, tmp_path / "net")


def test_a_single_type_has_to_be_common(capture: Path) -> None:
    with pytest.raises(
        ValueError, match="dtype must be one in which both captures ran; got dtype='bfloat16'"
    ):
        judge(capture, capture, dtype="bfloat16")


def test_a_model_without_inputs_and_weights(tmp_path: Path) -> None:
    """It has nothing to pair; its outputs tell."""

    def capture(name: str, value: Any) -> Path:
        options: dict[str, Any] = {"steps": 0, "call": lambda model, inputs: value}
        return capture_jax(nnx.Dropout(0.5), {}, tmp_path / name, **options)

    first = capture("a", jnp.arange(3.0))
    assert judge(first, capture("b", jnp.arange(3.0))).verdict == "equal"
    assert judge(first, capture("c", jnp.arange(1.0, 4.0))).verdict == "different"
    with pytest.raises(ValueError, match="the model returns nothing that can be compared"):
        capture("d", None)


def test_batches_have_the_shapes_of_the_inputs(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"batches\(0\) fails with TypeError: .*; it gets the number of a step"
    ):
        capture_jax(Net(), INPUTS, tmp_path / "a", dtypes=("float32",), batches=lambda step: None)
    with pytest.raises(ValueError, match=r"batches\(0\) must have the names and shapes of inputs, which are"):
        capture_jax(
            Net(), INPUTS, tmp_path / "a", dtypes=("float32",), batches=lambda step: {"y": np.ones(2)}
        )


def test_inputs_in_another_layout(capture: Path, tmp_path: Path) -> None:
    """The folder holds them as they are given, the model gets what `to_ours` makes of them."""

    class Transposed(Net):
        def __call__(self, x: jax.Array) -> jax.Array:
            return super().__call__(x.T)

    options: dict[str, Any] = {"dtypes": ("float32",), "steps": 0}
    path = capture_jax(
        Transposed(), INPUTS, tmp_path / "a", to_ours=lambda inputs: {"x": inputs["x"].T}, **options
    )
    np.testing.assert_array_equal(read_capture(path).inputs["x"], INPUTS["x"])
    result = judge(capture, path)
    assert result.verdict == "equal", (result.divergence, result.reason)
