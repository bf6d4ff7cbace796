"""`jaxmodels benchmark pair.py`: both sides of a pair are timed with the instrument of the benchmarks, if they agree."""

import copy
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import optax
import pytest
import torch

from jaxmodels import __main__ as command_line
from jaxmodels.benchmark import command, measuring
from jaxmodels.benchmark.kinds import Mode
from jaxmodels.benchmark.torch_side import TorchSide
from jaxmodels.benchmark.worker import Job, measure_alone, time_in_turn
from parity_tests.small_pairs import net_pair


ROOT = Path(__file__).parents[1]
PAIR = "from parity_tests.small_pairs import net_pair\n\ndef pair():\n    return net_pair(approximate={})\n"
# As `parity_tests.small_pairs`, with the image as an output, whose channels are not where JAX has them.
IMAGES = """from dataclasses import replace
from parity_tests.small_pairs import net_pair

def pair():
    both = net_pair()
    return replace(
        both,
        call_ours=lambda model, inputs: (model(**inputs), model.stem(inputs["x"])),
        call_theirs=lambda model, inputs: (model(**inputs), model.conv(inputs["x"])),
    )
"""
# Each side alone, with the weights and inputs of the command.
SIDES = """

def torch_side(files):
    from safetensors.torch import load_file
    theirs = net_pair().theirs
    theirs.load_state_dict(load_file(files / "weights.safetensors"))
    return {"model": theirs, "inputs": load_file(files / "inputs.safetensors")}

def jax_side(files):
    from safetensors.numpy import load_file
    from jaxmodels.compare.preparation import prepare
    images = load_file(files / "inputs.safetensors")["x"]
    return {"model": prepare(net_pair(), "float32").pair.ours, "inputs": {"x": images.transpose(0, 2, 3, 1)}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(measuring, "MIN_SECONDS", 0.0)
    return tmp_path


def job(mode: Mode = "forward", **options: object) -> Job:
    fields = {"implementations": ("eager", "jax"), "rounds": 2, "threads": 1, "time_again": True}
    return Job(target="pair.py", number=0, mode=mode, **{**fields, **options})


@pytest.mark.parametrize(("mode", "source"), [("forward", IMAGES), ("train", PAIR.format(False))])
def test_both_sides_agree_and_are_timed(mode: Mode, source: str, folder: Path) -> None:
    (folder / "pair.py").write_text(source)
    found = time_in_turn(job(mode))
    assert found["errors"]["eager"] == 0
    assert 0 <= found["errors"]["jax"] < 1e-4
    assert {name: len(times) for name, times in found["times"].items()} == {"again": 2, "eager": 2, "jax": 2}


def test_a_wrong_port_is_not_timed(folder: Path) -> None:
    """Where the process itself finds it, such as by another version of a library than compared."""
    (folder / "pair.py").write_text(
        PAIR.format(False).replace("return net", "return wrong(net") + ")" + WRONG
    )
    found = time_in_turn(job())
    assert found["errors"]["jax"] > 0.1
    assert found["times"] == {}


def test_a_step_that_does_nothing_is_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optax, "adamw", lambda *_, **__: optax.set_to_zero())
    (folder / "pair.py").write_text(PAIR.format(False))
    assert time_in_turn(job("train"))["times"] == {}


def test_one_implementation_alone(folder: Path) -> None:
    (folder / "pair.py").write_text(PAIR.format(False))
    eager = measure_alone(job("train", implementations=("eager",)))
    assert eager["first_call_s"] > 0
    assert eager["flop"] > 2 * 5 * 36 * 4 * 27  # the convolution's forward pass, and more
    assert measure_alone(job(implementations=("jax",)))["xla_flop"] > 0


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_the_call_is_compiled_in_one_piece(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = functools.partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    pair = net_pair()
    compiled, eager = (
        TorchSide(copy.deepcopy(pair.theirs).eval(), pair.inputs, mode, compiled=flag)
        for flag in (True, False)
    )
    assert torch.equal(compiled(), eager())


@pytest.fixture
def torchax_side() -> Iterator[ModuleType]:
    """Importing torchax switches PyTorch's fused transformers off for the whole process."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    from jaxmodels.benchmark import torchax_side

    yield torchax_side
    torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_torchax_trains_both_uses_of_a_tied_weight(torchax_side: ModuleType) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5))
    model[1].weight = model[0].weight
    inputs = {"tokens": np.arange(5, dtype=np.int32)}
    eager = TorchSide(copy.deepcopy(model), inputs, "train", compiled=False)
    found = torchax_side.TorchaxSide(model, inputs, "train", "float32")
    for _ in range(2):
        eager(), found()
    assert float(found()) == pytest.approx(float(eager()), rel=1e-6)


def test_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes are replaced but for the one that times a file with a function per side."""
    asked = []

    def answered(words: list[str], answer: Path, **options: object) -> dict:
        asked.append(Job.read(Path(words[-2])))
        names = asked[-1].implementations
        if names == ("compile",):
            raise command.Failure("ended with status 1:\nInductorError: no C++ compiler")
        if len(names) == 1:
            return {"first_call_s": 1.0, "peak_mb": 2.0}
        return time_in_turn(asked[-1])

    monkeypatch.setattr(command, "answer_of", answered)
    (folder / "pair.py").write_text(PAIR.format(False) + SIDES)
    words = ["--modes", "forward", "--rounds", "2", "--output", "out"]
    assert _main(monkeypatch, "benchmark", "pair.py", *words) == 0
    assert {one.number for one in asked} == {None}
    assert [one.implementations for one in asked] == [("eager",), ("compile",), ("jax",), ("eager", "jax")]
    cells = json.loads((folder / "out" / "results.json").read_text())["cells"]
    assert [(c["model"], c["size"], c["implementation"]) for c in cells] == [
        ("net", "5×3×6×6", name) for name in ("eager", "compile", "jax")
    ]
    printed = capsys.readouterr().out
    assert "torch.compile fails in 1 rows: InductorError: no C++ compiler." in printed
    (folder / "pair.py").write_text(PAIR.format(True))
    del asked[:]
    assert _main(monkeypatch, "benchmark", "pair.py") == 1
    assert asked == []
    assert "net: different; nothing was timed\n  layer: (model)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pair.py"], "pair.py: there is no such file"),
        (["glum"], "there is no model 'glum'; did you mean glom?"),
        (["glom", "--rounds", "1"], "rounds must be an integer ≥ 2; got rounds=1"),
        (["glom", "--threads", "0"], "threads must be an integer"),
        (["glom", "--modes", "train", "train"], "modes must name one or more, each once; got train train"),
    ],
)
def test_wrong_use(
    words: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _main(monkeypatch, "benchmark", *words) == 2
    assert capsys.readouterr().err.startswith(f"jaxmodels: {message}")


def _main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jaxmodels", *words])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    return int(stopped.value.code or 0)


WRONG = """

def wrong(pair):
    from dataclasses import replace
    return replace(pair, call_ours=lambda model, inputs: 2 * model(**inputs))
"""
