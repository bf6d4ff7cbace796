"""The parts of the benchmarks that need PyTorch. No test asserts a time."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import einops
import jax
import numpy as np
import pytest
import torch

from benchmarks import run
from benchmarks.pairs import PAIRS
from jaxmodels import demo
from jaxmodels.benchmark import flop, jax_side, machine, measuring, worker
from jaxmodels.benchmark.kinds import Mode
from jaxmodels.benchmark.processes import Disagreement
from jaxmodels.benchmark.torch_side import TorchSide
from jaxmodels.benchmark.worker import Job
from jaxmodels.convert import core
from jaxmodels.models import MODEL_NAMES, ModelName


@pytest.fixture
def glom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mode], Job]:
    """Gives the job that times GLOM on both sides, a call a turn."""
    monkeypatch.setattr(measuring, "MIN_SECONDS", 0.0)

    def prepared(mode: Mode) -> Job:
        plan = run.Plan(models=("glom",), sizes=("small",), modes=(mode,), rounds=2, threads=1)
        with jax.enable_x64(False):
            return run.with_files(run.jobs(plan, ("eager", "jax"))[0], tmp_path)

    return prepared


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_both_sides_compute_the_same_and_are_timed(mode: Mode, glom: Callable[[Mode], Job]) -> None:
    job = glom(mode)
    found = worker.time_in_turn(replace(job, count_flop=mode == "train"))
    assert 0 < found["errors"]["jax"] < 1e-4
    assert ("flop" in found) == (mode == "train")
    assert {name: len(times) for name, times in found["times"].items()} == {"again": 2, "eager": 2, "jax": 2}
    run.check_agreement(job, found["errors"])


def test_programs_are_compiled_without_running(
    glom: Callable[[Mode], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(glom("forward"), implementations=("jax",), compile_only=True)
    monkeypatch.setattr(jax_side.JaxSide, "__call__", lambda self: pytest.fail("the model was run"))
    assert worker.compile_alone(job)["first_call_s"] > 0


def test_a_wrong_weight_stops_before_timing(
    glom: Callable[[Mode], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, load = glom("forward"), core.load_state_dict

    def load_wrongly(model: Any, weights: Path) -> Any:
        load(model, weights).init_levels[...] *= 1.02
        return model

    monkeypatch.setattr(core, "load_state_dict", load_wrongly)
    monkeypatch.setattr(measuring, "interleaved", lambda *_, **__: pytest.fail("something was timed"))
    found = worker.time_in_turn(job)
    with pytest.raises(
        Disagreement, match=r"glom small forward float32: jax differs from eager by .*nothing was"
    ):
        run.check_agreement(job, found["errors"])


def torch_side(model: ModelName, mode: Mode, *, compiled: bool, iters: int | None = None) -> TorchSide:
    """The PyTorch side in the small size, with weights of its own."""
    pair = PAIRS[model]
    workload = replace(pair.sizes["small"], iters=iters)
    functions = {
        name: partial(function, workload=workload)
        for name, function in (("call", pair.call), ("loss", pair.loss_theirs))
    }
    torch.manual_seed(0)
    return TorchSide(pair.theirs(workload), pair.inputs(workload), mode, compiled=compiled, **functions)


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_arithmetic_of_every_model_is_counted(model: ModelName) -> None:
    counts: dict[str, int] = {}
    for mode in ("forward", "train"):
        side = torch_side(model, mode, compiled=False)
        before = side.model.state_dict()[next(iter(dict(side.model.named_parameters())))].clone()
        counts[mode] = flop.count(side)
        value = side()
        after = side.model.state_dict()[next(iter(dict(side.model.named_parameters())))]
        assert torch.isfinite(value).all()
        assert torch.equal(before, after) == (mode == "forward")
    if model == "glom":  # all levels of 4 × 64 columns of width 64, and the patches
        step = 7 * 2 * 2 * 256 * 64 * 256 + 4 * 2 * 2 * 256 * 64 * 64
        patches = 2 * 256 * 192 * 64
        assert counts["forward"] == 8 * step + patches
        # Five steps, the decoder, and their gradients; images and level vectors before the first step need none.
        assert counts["train"] == pytest.approx(3 * (5 * step + 2 * patches), rel=0.03)
    elif model != "mammut":  # which reads the text twice
        assert 2.9 * counts["forward"] < counts["train"] <= 3 * counts["forward"]
    assert counts["train"] > 1.4 * counts["forward"] > 0


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_of_a_convolution_cost_as_much_as_the_convolution(groups: int, transposed: bool) -> None:
    kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    layer = kind(4, 8, 3, stride=2, padding=1, groups=groups)
    images = torch.randn(2, 4, 8, 8, requires_grad=True)
    forward = 2 * 2 * (64 if transposed else 16) * 4 * (8 // groups) * 9  # images, positions, products
    assert flop.count(lambda: layer(images)) == forward
    assert flop.count(lambda: layer(images).sum().backward()) == 3 * forward
    assert flop.count(lambda: layer(images.detach()).sum().backward()) == 2 * forward


def test_fused_attention_is_counted() -> None:
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (16, 32, 32))
    forward = 2 * 2 * 2 * 3 * 16 * 32 * 8

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    assert flop.count(attend) == forward
    assert flop.count(lambda: attend().sum().backward()) == 3 * forward


@pytest.mark.usefixtures("unchecked_types")
def test_a_compiled_model_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as by `torch.compile`, but run as it is: code for the processor takes too long here."""
    monkeypatch.setattr(einops._backends, "_type2backend", {})  # as in a fresh process
    graphs: list[torch.fx.GraphModule] = []

    def collect(graph: torch.fx.GraphModule, _: object) -> Callable:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=collect))
    compiled, eager = (torch_side("glom", "forward", compiled=flag, iters=1) for flag in (True, False))
    assert torch.equal(compiled(), eager())
    compiled()
    assert len(graphs) == 1


def test_the_process_of_pytorch_holds_no_jax(glom: Callable[[Mode], Job], tmp_path: Path) -> None:
    replace(glom("forward"), implementations=("eager",)).write(tmp_path / "job.json")
    program = (
        "import sys; from jaxmodels.benchmark import worker; worker.main(); "
        "print('torch' in sys.modules, 'jax' in sys.modules)"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "job.json"), str(tmp_path / "answer.json")]
    printed = subprocess.run(words, cwd=machine.ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["True", "False"]
    assert json.loads((tmp_path / "answer.json").read_text())["flop"] > 0


def test_peaks_are_measured_in_both_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.GEMM_SIZES, "cpu", 32)
    assert {name: peak > 0 for name, peak in machine.gemm_peaks("cpu").items()} == {
        "float32": True,
        "bfloat16": True,
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"device must be 'cpu' here: PyTorch .* sees no GPU; got device='cuda'"
    ):
        machine.require("cuda")


@dataclass
class NoTraining:
    """A training run without training."""

    workdir: Path | None = None
    steps: int = 0

    def task(self) -> Any:
        return SimpleNamespace(
            evaluate=lambda call, split: {"top1": 0.5}, metric=SimpleNamespace(name="top1")
        )


@pytest.fixture
def fast_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo without training and comparing."""

    def train(experiment: NoTraining, preset: str) -> int:
        experiment.workdir.mkdir(parents=True)
        (experiment.workdir / "results.json").write_text('{"test": {"top1": 0.5}}')
        (experiment.workdir / "report.html").write_text("<body>trained</body>")
        return 0

    def compare(models: tuple, *, output: Path, checkpoint: Path | None = None) -> int:
        output.mkdir(parents=True)
        (output / "report.html").write_text("<body>compared</body>")
        (output / "report.json").write_text(json.dumps({"models": [{"ok": True}]}))
        return 0

    twin = SimpleNamespace(load=lambda folder: SimpleNamespace(call=None))
    monkeypatch.setattr(demo, "PRESETS", {demo.PRESET: NoTraining()})
    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(demo.command, "run", compare)
    monkeypatch.setattr(demo, "TorchTask", lambda task: twin)


@pytest.mark.parametrize("status", [0, 1])
def test_the_demo_ends_with_the_benchmark(
    status: int, fast_demo: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(words: list[str], *, cwd: Path, check: bool) -> Any:
        assert words[1:4] == ["-m", "benchmarks", "--quick"]
        folder = Path(words[-1])
        folder.mkdir()
        (folder / "report.html").write_text("<body>timed</body>")
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(demo.subprocess, "run", measured)
    assert demo.run(tmp_path) == status
    page = (tmp_path / "report.html").read_text()
    assert page.index("Time on both sides") < page.index("timed")
    assert page.count("compared") == 2


@pytest.mark.parametrize("there", ["pyproject.toml", "benchmarks/__main__.py"])  # the latter may be anybody's
def test_the_demo_of_an_installed_package_has_no_benchmark(
    there: str,
    fast_demo: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / there).write_text("")
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    assert demo.run(tmp_path / "out") == 0
    assert "left out: the benchmarks are in the repository" in capsys.readouterr().out
    assert "Time on both sides" not in (tmp_path / "out" / "report.html").read_text()


def test_numbers_of_both_libraries_become_numpy() -> None:
    for value in (torch.ones(2, dtype=torch.bfloat16), jax.numpy.ones(2, "bfloat16")):
        assert np.array_equal(measuring.as_numpy(value), np.ones(2, np.float32))
