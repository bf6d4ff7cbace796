"""Captures of both sides, judged offline: right and wrong ports, unlike types and devices, large tensors."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from jaxmodels.compare.captures import capture_jax, capture_torch, jax_side, judge, read_capture
from jaxmodels.compare.captures import command as captures_command
from jaxmodels.compare.inference import write_map
from jaxmodels.compare.noise import FACTOR, projected, relative_error
from jaxmodels.compare.places import PlacedError
from jaxmodels.compare.projection import is_projection
from jaxmodels.convert.table import Derived
from parity_tests.small_pairs import net_pair
from parity_tests.toy_pairs import in_flax, in_torch, linear, load, normal, one_linear, toy


ROOT = Path(__file__).parents[1]
INPUTS = {"x": normal(5, 3, 6, 6)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captures")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Path:
    """A small network with a convolution, whose names are not Flax's."""
    dtypes = ("float32", "float64", "bfloat16")
    return capture_torch(net_pair().theirs, INPUTS, folder / "theirs", dtypes=dtypes, steps=2)


@pytest.fixture(scope="module")
def capture_port(folder: Path) -> Callable[..., Path]:
    """Captures a port of that network; `change` does something to it before."""

    def capture(name: str, change: Callable[[Any], Any] = lambda model: None, **arguments: Any) -> Path:
        model = load(net_pair(approximate=arguments.pop("approximate", False)))
        change(model)
        inputs = {"x": INPUTS["x"].transpose(0, 2, 3, 1)}
        return capture_jax(model, inputs, folder / name, **{"dtypes": ("float32",), "steps": 2, **arguments})

    return capture


@pytest.fixture(scope="module")
def ours(capture_port: Callable[..., Path]) -> Path:
    return capture_port("ours", dtypes=("float32", "float64"))


@pytest.fixture(scope="module")
def wrong(capture_port: Callable[..., Path]) -> Path:
    """The tanh form of GELU."""
    return capture_port("wrong", approximate=True)


class TestVerdicts:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_right_port_is_equal(self, theirs: Path, ours: Path, dtype: str) -> None:
        """Weights are paired by their values: the names on both sides have little in common."""
        result = judge(theirs, ours, dtype=dtype)
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert result.not_compared == {}
        assert {check.name for check in result.layers} == {"conv", "body.0", "body.2"}
        assert len(result.gradients) == len(result.weights) == 7
        assert result.weight_steps == 2
        assert result.model == "TorchNet"
        assert result.parameters == sum(p.numel() for p in net_pair().theirs.parameters())

    def test_the_order_of_the_two_does_not_matter(self, theirs: Path, ours: Path) -> None:
        assert judge(ours, theirs).outputs == judge(theirs, ours).outputs

    def test_a_wrong_port_is_located(self, theirs: Path, wrong: Path) -> None:
        result = judge(theirs, wrong)
        assert result.verdict == "different"
        assert result.divergence is not None
        assert result.divergence.detail == "in the code of (model) after body.0, before body.2"
        assert (
            result.diagnosis
            == "body.1: nnx.gelu uses the tanh form; approximate=False removes the difference"
        )

    def test_a_wrong_weight_is_named(self, theirs: Path, capture_port: Callable[..., Path]) -> None:
        def change(model: Any) -> None:
            model.up.kernel.set_value(model.up.kernel.get_value().at[0, 0].add(1e-3))

        result = judge(theirs, capture_port("other weight", change, steps=0))
        assert result.divergence is not None
        assert result.divergence.layer == "body.0"
        assert "the weight body.0.weight is not the same on both sides" in result.divergence.detail

    def test_other_inputs_are_refused(self, theirs: Path, tmp_path: Path) -> None:
        other = read_capture(theirs)
        other.inputs = {"x": other.inputs["x"] + 1e-7}
        with pytest.raises(
            ValueError, match=r"captures must have the same inputs; x has other values in theirs .*"
        ):
            judge(theirs, other)
        other.inputs = {"x": other.inputs["x"][:1]}
        with pytest.raises(ValueError, match="captures must have the same inputs"):
            judge(theirs, other)

    def test_what_is_not_finite_cannot_be_judged(self, theirs: Path, ours: Path) -> None:
        captures = read_capture(theirs), read_capture(ours)
        for capture in captures:
            for run in capture.runs.values():
                name = "body.2.bias" if capture.side == "torch" else "down.bias"
                run.weights[name] = np.full_like(run.weights[name], np.nan)
                run.outputs = {"": np.full_like(run.outputs[""], np.nan)}
        result = judge(*captures)
        assert result.verdict == "cannot be judged"
        assert result.reason is not None
        assert "the weight body.2.bias holds values that are not finite" in result.reason

    def test_modules_that_one_side_lacks_are_listed(self, theirs: Path, ours: Path) -> None:
        """The activation is a module in PyTorch and a function in JAX; a layer's calls may be missing as well."""
        capture = read_capture(ours)
        run = capture.runs["float32"]
        run.events = [event for event in run.events if event.path != "up"]
        result = judge(theirs, capture)
        assert result.verdict == "equal"
        assert result.not_compared == {"body.0": "never called as a module in JAX"}
        run.events = []
        result = judge(theirs, capture)
        assert set(result.not_compared.values()) == {"its calls were not recorded"}


def square(
    theirs: Callable, ours: Callable, folder: Path, *, transposed: bool = True, **arguments: Any
) -> Any:
    """The verdict on a square Linear layer, of which `theirs` and `ours` make the output, captured in float32."""
    pair = one_linear(ours, theirs)
    load(pair)
    if not transposed:
        pair.ours.layer.kernel.set_value(pair.ours.layer.kernel.get_value().T)
    a = capture_torch(pair.theirs, pair.inputs, folder / "a", steps=0, dtypes=("float32", "float64"))
    b = capture_jax(pair.ours, pair.inputs, folder / "b", steps=0, **{"dtypes": ("float32",), **arguments})
    return judge(a, b)


class TestMistakes:
    def test_a_square_kernel_that_was_not_transposed(self, tmp_path: Path) -> None:
        """Its values are the same ones, so it is paired; the layer then computes something else."""
        result = square(lambda y: y, lambda y: y, tmp_path, transposed=False)
        assert result.divergence is not None
        assert result.divergence.detail == "layer gets the same input and returns another output"

    def test_a_gradient_that_is_stopped(self, tmp_path: Path) -> None:
        """Half of the gradient is missing, far more than a ReLU at its kink may change."""
        half = lambda y: (y + jax.lax.stop_gradient(y)) / 2  # noqa: E731
        result = square(lambda y: y, half, tmp_path)
        assert result.divergence is not None
        assert result.divergence.kind == "gradients"

    def test_a_small_gradient_error_may_be_a_kink_in_float32(self, tmp_path: Path) -> None:
        @jax.custom_vjp
        def nearly(y):
            return y

        nearly.defvjp(lambda y: (y, None), lambda _, g: (g * (1 + 1e-3 * np.sign(np.arange(8) - 3.5)),))
        result = square(lambda y: y, lambda y: nearly(y), tmp_path)
        assert result.verdict == "cannot be judged"
        assert result.reason is not None
        assert "a ReLU at its kink" in result.reason
        result = square(lambda y: y, lambda y: nearly(y), tmp_path, dtypes=("float32", "float64"))
        assert result.verdict == "different"


class TestNoise:
    def test_without_a_finer_capture_small_differences_are_undecided(self, tmp_path: Path) -> None:
        """Any float64 capture of one side decides them: the arbiter."""
        pair = one_linear(lambda y: y * (1 + 1e-5))
        load(pair)
        arguments: dict[str, Any] = {"dtypes": ("float32",), "steps": 0}
        a = capture_torch(pair.theirs, pair.inputs, tmp_path / "a", **arguments)
        b = capture_jax(pair.ours, pair.inputs, tmp_path / "b", **arguments)
        result = judge(a, b)
        assert result.verdict == "cannot be judged"
        assert result.reason is not None
        assert "no capture measures the rounding noise of float32" in result.reason
        arguments["dtypes"] = ("float64",)
        for arbiter in (
            capture_torch(pair.theirs, pair.inputs, tmp_path / "c", **arguments),
            capture_jax(pair.ours, pair.inputs, tmp_path / "d", **arguments),
        ):
            assert judge(a, b, arbiter).verdict == "different"
        # Both sides in float64 alone are compared by its least noise, or not at all.
        assert judge(tmp_path / "c", tmp_path / "d").verdict == "cannot be judged"

    def test_tf32_on_one_side_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A layer whose factors keep 10 bits stands for a GPU; captures of PyTorch in three types measure TF32."""

        def rounded(x: jax.Array) -> jax.Array:
            if x.dtype != np.float32:
                return x
            return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)

        def call(model: Any, inputs: Any) -> jax.Array:
            return rounded(inputs["x"]) @ rounded(model.layer.kernel[...]) + model.layer.bias[...]

        pair = one_linear(rows=64)
        load(pair)
        dtypes = ("float32", "float64", "bfloat16")
        a = capture_torch(pair.theirs, pair.inputs, tmp_path / "a", steps=0)
        measured = capture_torch(pair.theirs, pair.inputs, tmp_path / "c", steps=0, dtypes=dtypes)
        monkeypatch.setattr(jax_side, "observe_jax", lambda kind: ("DEFAULT", 3.1e-4))
        arguments: dict[str, Any] = {"steps": 0, "dtypes": ("float32",), "full_precision": False}
        b = capture_jax(pair.ours, pair.inputs, tmp_path / "b", call=call, **arguments)
        sentence = "the JAX capture b multiplied in TF32 (off by 3.1e-04)"
        result = judge(a, b)
        assert result.verdict == "cannot be judged"
        assert result.reason is not None
        assert sentence in result.reason
        result = judge(measured, b)
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert any(sentence in note for note in result.notes)
        wrong = lambda model, inputs: call(model, inputs) * 1.02  # noqa: E731
        b = capture_jax(pair.ours, pair.inputs, tmp_path / "b", call=wrong, **arguments)
        assert judge(measured, b).verdict == "different"

    def test_bfloat16_is_judged_by_the_noise_of_three_captures(self, tmp_path: Path) -> None:
        """One layer has little enough noise for its root mean square to prove something; its gradients have more."""
        pair = one_linear(rows=64)
        load(pair)
        dtypes = ("float32", "float64", "bfloat16")
        a = capture_torch(pair.theirs, pair.inputs, tmp_path / "a", steps=0, dtypes=dtypes)
        b = capture_jax(pair.ours, pair.inputs, tmp_path / "b", steps=0, dtypes=dtypes)
        result = judge(a, b, dtype="bfloat16")
        assert result.dtype == "bfloat16"
        (check,) = result.outputs
        assert check.name == "output 0 (root mean square)"
        assert check.ok
        assert 1e-3 < check.noise < check.tolerance <= 1e-2
        assert result.loss_checks[0].undecided is None
        assert result.divergence is None
        assert result.reason is not None
        assert result.reason.startswith("the gradient of")
        # Weights are paired by their values, also those of unlike types.
        unlike = read_capture(a), read_capture(b)
        unlike[0].runs = {"float32": unlike[0].runs["float32"]}
        unlike[1].runs = {"bfloat16": unlike[1].runs["bfloat16"]}
        assert {check.name for check in judge(*unlike, a).gradients} == {"layer.weight", "layer.bias"}
        wrong = lambda model, inputs: model(inputs["x"]) * 1.05  # noqa: E731
        b = capture_jax(pair.ours, pair.inputs, tmp_path / "b", steps=0, dtypes=dtypes, call=wrong)
        assert judge(a, b, dtype="bfloat16").verdict == "different"


class TestPairsOfWeights:
    def test_packed_attention_and_transposed_convolutions_are_found_by_their_values(
        self, tmp_path: Path
    ) -> None:
        rngs = nnx.Rngs(0)
        pair = toy(
            in_flax(
                lambda self, x: self.up(self.attention(x)),
                attention=nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs),
                up=nnx.ConvTranspose(8, 4, (3,), strides=(1,), padding="VALID", rngs=rngs),
            ),
            in_torch(
                lambda self, x: self.up(self.attention(x, x, x, need_weights=False)[0].mT),
                attention=torch.nn.MultiheadAttention(8, 2, batch_first=True),
                up=torch.nn.ConvTranspose1d(8, 4, 3),
            ),
            normal(2, 5, 8),
        )
        torch.nn.init.normal_(pair.theirs.attention.in_proj_bias)
        torch.nn.init.normal_(pair.theirs.attention.out_proj.bias)
        load(pair)
        a = capture_torch(pair.theirs, pair.inputs, tmp_path / "a", steps=1)
        b = capture_jax(pair.ours, pair.inputs, tmp_path / "b", steps=1)
        result = judge(a, b)
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert {c.name for c in result.gradients} == {name for name, _ in pair.theirs.named_parameters()}
        # Flax's softmax computes in float32 whatever it gets.
        result = judge(a, b, dtype="float64")
        assert result.verdict == "cannot be judged", result.divergence
        assert result.reason is not None
        assert "JAX computes in float32 (first in" in result.reason

    def test_equal_values_are_told_apart_by_names(self, tmp_path: Path) -> None:
        """Fresh biases of zeros: two layers with other names, whose kernels say which is which."""
        pair = one_linear(rows=2)
        theirs = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
        ours = in_flax(lambda self, x: self.b(jax.numpy.tanh(self.a(x))), a=linear(8, 8), b=linear(8, 8))
        for i, layer in ((0, ours.a), (2, ours.b)):
            torch.nn.init.zeros_(theirs[i].bias)
            layer.kernel.set_value(jax.numpy.asarray(theirs[i].weight.detach().numpy().T))
        a = capture_torch(theirs, pair.inputs, tmp_path / "a", steps=0)
        b = capture_jax(ours, pair.inputs, tmp_path / "b", steps=0, dtypes=("float32",))
        result = judge(a, b)
        assert result.verdict == "equal", (result.divergence, result.reason)
        assert {c.name for c in result.gradients} == {"0.weight", "0.bias", "2.weight", "2.bias"}
        with pytest.raises(
            ValueError, match=r"names must pair existing modules\n  not in the JAX capture: c"
        ):
            judge(a, b, names={"c": "0"})

    def test_a_table_that_is_given_travels_with_the_capture(self, tmp_path: Path) -> None:
        pair = net_pair()
        load(pair)
        a = capture_torch(pair.theirs, INPUTS, tmp_path / "a", steps=0, table=pair.table)
        assert read_capture(a).table == [entry for entry in pair.table if not isinstance(entry, Derived)]


class TestProjections:
    @pytest.mark.parametrize(("approximate", "verdict"), [(False, "equal"), (True, "different")])
    def test_large_tensors_are_kept_as_projections(
        self, capture_port: Callable[..., Path], tmp_path: Path, approximate: bool, verdict: str
    ) -> None:
        a = capture_torch(net_pair().theirs, INPUTS, tmp_path / "a", limit=20, steps=1)
        b = capture_port("projected", approximate=approximate, limit=20, steps=1)
        for path in (a, b):
            run = read_capture(path).runs["float32"]
            kept = [*run.weights.values(), *(x for event in run.events for x in event.arrays)]
            assert all(is_projection(x) == (x.size > 20) for x in kept)
        result = judge(a, b)
        assert result.verdict == verdict, (result.divergence, result.reason)
        if approximate:
            assert result.divergence is not None
            assert result.divergence.detail == "in the code of (model) after body.0, before body.2"
            assert any(
                "no mistake was looked for: weights/conv.weight was kept" in note for note in result.notes
            )

    def test_an_error_at_one_place_among_a_million_is_seen(self) -> None:
        """Even one of a hundredth of the spread; and the projection transposes as the tensor does."""
        exact = normal(10, 100, 1000)
        wrong = exact.copy()
        wrong[3, 50, 700] += 0.01
        kept = projected(exact)
        assert kept.sums.size <= 8**3
        noise = relative_error(projected(exact.astype(np.float32)), kept)
        assert relative_error(projected(wrong.astype(np.float32)), kept) > FACTOR * max(noise, 2 * 2**-23)
        turned = projected(np.ascontiguousarray(exact.transpose(2, 0, 1)))
        assert relative_error(turned, kept.transpose((2, 0, 1))) < 1e-14
        swapped = exact[:, :, [1, 0, *range(2, 1000)]]
        assert relative_error(projected(swapped), kept) > 1e-3

    def test_values_that_are_not_finite_or_fill_masked_places_do_not_hide_the_others(self) -> None:
        exact = normal(40, 50)
        exact[:20, :25] = -1e9
        exact[0, 0] = np.inf
        wrong = exact.copy()
        wrong[30, 30] += 1
        assert relative_error(projected(exact), projected(exact)) == 0
        assert relative_error(projected(wrong), projected(exact)) > 1e-3
        wrong[0, 0] = np.nan
        assert relative_error(projected(wrong), projected(exact)) == np.inf


class TestCommand:
    @pytest.mark.parametrize("side", ["torch", "jax"])
    def test_captures_a_side_of_a_pair(
        self, side: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "pair.py"
        file.write_text("from parity_tests.small_pairs import net_pair as pair\n")
        output = tmp_path / "x.capture"
        assert captures_command.write(file, side=side, output=output, steps=0, dtypes=("float32",)) == 0
        assert capsys.readouterr().out == f"captured: {output}\n"
        read = read_capture(output)
        assert (read.side, read.name, set(read.runs)) == (side, "net", {"float32"})
        assert read.table

    def test_captures_a_side_that_stands_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "pair.py"
        file.write_text(
            "import torch\n"
            "def torch_side():\n"
            "    return {'model': torch.nn.Linear(2, 2), 'inputs': {'x': torch.ones(1, 2)}, 'name': 'alone'}\n"
        )
        output = tmp_path / "x"
        assert captures_command.write(file, side="torch", output=output, steps=0) == 0
        assert read_capture(output).name == "alone"
        with pytest.raises(PlacedError, match=r"has neither jax_side\(\) nor pair\(\)"):
            captures_command.write(file, side="jax", output=output)
        file.write_text("def torch_side():\n    return {'model': 1}\n")
        with pytest.raises(
            PlacedError, match="must return a dict with model and inputs; got a dict with model"
        ):
            captures_command.write(file, side="torch", output=output)
        file.write_text("def torch_side():\n    return {'model': 1, 'inputs': {}, 'to_ours': 2}\n")
        with pytest.raises(
            ValueError, match=r"torch_side\(\) returns to_ours, which capture_torch does not take"
        ):
            captures_command.write(file, side="torch", output=output)
        file.write_text("def torch_side():\n    return {}['model']\n")
        with pytest.raises(PlacedError, match=r"pair\.py:2: torch_side\(\) fails with KeyError: 'model'"):
            captures_command.write(file, side="torch", output=output)


def test_a_random_pytorch_model_is_refused(tmp_path: Path) -> None:
    model = in_torch(lambda self, x: x + torch.randn_like(x), layer=torch.nn.Linear(8, 8))
    with pytest.raises(ValueError, match="returns other values when it runs a second time"):
        capture_torch(model, {"x": normal(2, 8)}, tmp_path / "a")
    assert not (tmp_path / "a").exists()


class TestWithoutTheOtherFramework:
    def test_pytorch_is_captured_and_judged_without_jax(
        self, theirs: Path, ours: Path, wrong: Path, tmp_path: Path
    ) -> None:
        code = f"""
            import sys
            import numpy, torch
            from jaxmodels.compare.captures import capture_torch, judge
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
            path = capture_torch(model, {{"x": numpy.ones((2, 4))}}, {str(tmp_path / "new")!r})
            results = [judge(path, path), *(judge({str(theirs)!r}, other) for other in sys.argv[1:])]
            print(*(result.verdict for result in results))
            print(results[-1].diagnosis)
        """
        blocked = os.pathsep.join(map(str, (ROOT / "tests" / "no_jax", ROOT)))
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(ours), str(wrong)],
            env={**os.environ, "PYTHONPATH": blocked},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "equal equal different",
            "body.1: nnx.gelu uses the tanh form; approximate=False removes the difference",
        ]


def test_the_command_judges_captures(
    theirs: Path, ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxmodels.compare import command

    folders = [str(theirs), str(ours)]
    assert command.run(folders, output=tmp_path) == 0
    assert "theirs and ours: equal" in capsys.readouterr().out
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["exit_status"], content["models"][0]["ok"]) == (0, True)
    for words, message in (
        (folders[:1], "captures are compared with each other: give the folders of two or more"),
        ([*folders, "glom"], "captures are compared with each other"),
        ([folders[0], str(tmp_path / "no.capture")], "no.capture"),
    ):
        assert command.run(words, output_format="json") == 2
        (failure,) = json.loads(capsys.readouterr().out)["failures"]
        assert message in failure["message"]
    table = [entry for entry in net_pair().table if entry.theirs != "scale"]
    write_map(tmp_path / "map.toml", table)
    assert command.run(folders, map_file=tmp_path / "map.toml", output=tmp_path) == 0
    content = json.loads((tmp_path / "report.json").read_text())
    assert "scale" not in str(content["models"][0]["gradients"])
    with pytest.raises(ValueError, match="a capture holds its own weights"):
        command.run(folders, checkpoint=Path("a.pt"))
