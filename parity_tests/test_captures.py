"""Captures of both sides, judged offline: right and wrong ports, unlike types and devices, damaged folders."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from jaxmodels.compare import Pair
from jaxmodels.compare.captures import capture_jax, capture_torch, judge
from jaxmodels.compare.preparation import loadable_arrays
from jaxmodels.convert.core import fit, variable_at
from parity_tests.small_pairs import net_pair
from parity_tests.toy_pairs import normal


ROOT = Path(__file__).parents[1]
INPUTS = {"x": normal(5, 3, 6, 6)}


def load(pair: Pair) -> nnx.Module:
    """The Flax model with PyTorch's weights, as a port's own loader would fill it."""
    for path, value in fit(pair.ours, pair.table, loadable_arrays(pair.theirs, pair)).items():
        variable_at(pair.ours, path).set_value(jax.numpy.asarray(value))
    return pair.ours


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
            print(judge(path, path).verdict, *(judge({str(theirs)!r}, other).verdict for other in sys.argv[1:]))
        """
        blocked = os.pathsep.join(map(str, (ROOT / "tests" / "no_jax", ROOT)))
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(ours), str(wrong)],
            env={**os.environ, "PYTHONPATH": blocked},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["equal", "equal", "different"]


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
    with pytest.raises(ValueError, match="a capture holds its own weights"):
        command.run(folders, checkpoint=Path("a.pt"))
