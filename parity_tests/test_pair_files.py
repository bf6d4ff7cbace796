"""`jaxmodels compare pair.py`: what it prints in each format, its exit status, and files that give no pair."""

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from flax import nnx

from jaxmodels import __main__ as command_line
from jaxmodels.compare import engine, jobs
from jaxmodels.compare.divergence import MODEL, Divergence
from jaxmodels.compare.pair import Pair
from jaxmodels.compare.places import Place, place_of_divergence
from jaxmodels.compare.result import Result
from jaxmodels.convert.table import Twin
from parity_tests import sample_comparisons as samples
from parity_tests.toy_pairs import linear


HEADER = """import sys
from parity_tests.small_pairs import net_pair
from dataclasses import replace
print("text of the file")
"""
MISTAKE = "nnx.gelu uses the tanh form, see line 5; approximate=False removes the difference"
SEVERAL = 'def pair():\n    return [replace(net_pair(), name=name) for name in ("good", "bad", "ugly")]\n'


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jaxmodels", "compare", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    return int(stopped.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs get the result that their name asks for."""
    found = Place("port.py", 12)
    results = {
        "good": samples.equal("good"),
        "bad": replace(samples.different("bad"), diagnosis=MISTAKE, code=found),
        "ugly": samples.undecided("ugly"),
    }

    def compare(pair: Pair, **_: object) -> Result:
        print("text of the model")
        if pair.name == "broken":
            raise KeyError("x")
        return results[pair.name]

    monkeypatch.setattr(jobs, "compare", compare)


def test_a_pair_is_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way once, with nothing replaced; the port is in a file beside the pair's."""
    (folder / "port.py").write_text(PORT)
    (folder / "pair.py").write_text("from port import pair\n")
    assert run(monkeypatch, "pair.py", "--steps", "0", "--output", "out") == 1
    printed = capsys.readouterr().out
    assert "mlp: in the code of (model) after up, before down (error" in printed
    assert f"  code: port.py:{PORT[: PORT.index('jax.nn.gelu(')].count(chr(10)) + 1}\n" in printed
    content = json.loads((folder / "out" / "report.json").read_text())
    assert content["exit_status"] == 1
    assert content["models"][0]["code"]["file"] == "port.py"


@pytest.mark.usefixtures("sampled")
def test_json_is_alone_on_stdout(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pair.py").write_text(HEADER + SEVERAL)
    assert run(monkeypatch, "pair.py", "--format", "json") == 1
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert [model["verdict"] for model in content["models"]] == ["equal", "different", "cannot be judged"]
    assert content["models"][1]["diagnosis"] == MISTAKE
    assert content["models"][1]["code"] == {"file": "port.py", "line": 12, "end_line": None}
    assert "text of the file" in printed.err
    assert "text of the model" in printed.err
    assert "bad: DIFFERENT" in printed.err


@pytest.mark.usefixtures("sampled")
def test_github(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pair.py").write_text(HEADER + SEVERAL.replace('"ugly"', '"ugly", "broken"'))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
    assert run(monkeypatch, "pair.py", "--format", "github") == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    assert lines[0] == "::notice title=good%3A equal in float32::equal"
    assert lines[1].startswith("::error file=port.py,line=12,title=bad%3A different in float32::layer: trans")
    assert f"%0Amistake: {MISTAKE}%0Acode: port.py:12%0Anext: make" in lines[1]
    assert lines[2].startswith("::error title=ugly%3A cannot be judged in float32::cannot be judged: output")
    assert lines[3:] == ["::error title=broken%3A could not be compared::KeyError: 'x'"]
    summary = (folder / "summary.md").read_text()
    assert "| verdict | model | outputs |" in summary
    assert f"* mistake: {MISTAKE}\n" in summary
    assert summary.endswith("* broken: KeyError: 'x'\n")


def test_an_annotation_stays_one_command() -> None:
    from jaxmodels.compare.formats import _annotation

    assert "line=1,endLine=3,title=t::x" in _annotation("error", Place("p.py", 1, 3), "t", "x")
    line = _annotation("error", Place("a,b:c.py", 1), "100%", "two\nlines 100%\r: , ::")
    assert line == "::error file=a%2Cb%3Ac.py,line=1,title=100%25::two%0Alines 100%25%0D: , ::"


@pytest.mark.parametrize(
    ("source", "message", "line"),
    [
        (None, "pair.py: there is no such file", None),
        ("x = 1\n", "pair.py has no function pair(): define one that takes no argument and returns a", 1),
        ("\ndef pair(:\n", "pair.py:2: the file fails with SyntaxError: ", 2),
        ("import nowhere\n", "pair.py:1: the file fails with ModuleNotFoundError: No module named 'nowhere'", 1),
        ("import sys\nsys.exit('no')\n", "pair.py:2: the file fails with SystemExit: no", 2),
        (
            "def build():\n    return {}['x']\n\ndef pair():\n    return build()\n",
            "pair.py:2: pair() fails with KeyError: 'x'",
            2,
        ),
        ("\ndef pair():\n    pass\n", "pair.py:2: pair() must return a jaxmodels.compare.Pair, or a list of them; got N", 2),
        ("def pair():\n    return [1, 'a']\n", "pair.py:1: pair() must return a jaxmodels.compare.Pair, or a list of them; got a list of int, str", 1),
        (HEADER + "def pair():\n    return [net_pair(), net_pair()]\n", "pair.py:5: pair() returns several pairs with the name 'net', which no report could tell apart: give each its own", 5),
        ("def pair():\n    return []\n", "pair.py:1: pair() must return a jaxmodels.compare.Pair, or a list of them; got an empty list", 1),
    ],
)  # fmt: skip
def test_files_that_give_no_pair(
    source: str | None,
    message: str,
    line: int | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if source is not None:
        (folder / "pair.py").write_text(source)
    assert run(monkeypatch, "pair.py") == 2
    assert capsys.readouterr().err.startswith(f"jaxmodels: {message}")
    assert run(monkeypatch, "pair.py", "--format", "json") == 2
    (failure,) = json.loads(capsys.readouterr().out)["failures"]
    assert failure["message"].startswith(message)
    assert (failure["code"] or {}).get("line") == line


@pytest.mark.usefixtures("sampled")
def test_pairs_of_two_files_are_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named: list[str] = []
    monkeypatch.setattr(
        jobs, "compare", lambda pair, **_: named.append(pair.name) or samples.equal(pair.name)
    )
    for file, names in (("a.py", '("net", "other")'), ("b.py", '("net",)')):
        source = f"def pair():\n    return [replace(net_pair(), name=name) for name in {names}]\n"
        (folder / file).write_text(HEADER + source)
    assert run(monkeypatch, "a.py", "b.py") == 0
    assert named == ["net (a.py)", "other", "net (b.py)"]
    assert run(monkeypatch, "a.py", "a.py") == 2
    assert "models must name each model or file once; got a.py 2 times" in capsys.readouterr().err


def test_a_pair_that_fails_stops_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pair.py").write_text(HEADER + BROKEN)
    assert run(monkeypatch, "pair.py", "--steps", "0") == 2
    printed = capsys.readouterr()
    assert "net: equal" in printed.out
    assert "broken: CANNOT BE COMPARED" in printed.out
    line = HEADER.count("\n") + 2
    assert f"jaxmodels: broken: pair.py:{line}: the PyTorch model fails with ZeroDivisionError" in printed.err


def test_wrong_use(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "pair.py", "--checkpoint", "glom.pt") == 2
    assert "checkpoint is for the five models; a file with a pair() loads its own" in capsys.readouterr().err


def test_the_line_that_makes_a_layer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of Flax's own is no place to look at: the line that makes it is."""
    from jaxmodels.compare.pair_files import read_pairs

    (folder / "port.py").write_text(PORT.replace("FLAX_EPSILON = 1e-5", "FLAX_EPSILON = 1e-3"))
    monkeypatch.delitem(sys.modules, "port", raising=False)
    (folder / "pair.py").write_text("from port import pair\n")
    (pair,) = read_pairs(Path("pair.py"))
    result = engine.compare(pair, gradients=False)
    line = PORT[: PORT.index("self.norm = nnx")].count("\n") + 1
    assert result.code == Place("port.py", line)


class Lines(nnx.Module):
    def __init__(self) -> None:
        self.up, self.down = linear(8, 8), linear(8, 8)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.up(x)
        x = jax.nn.gelu(x)
        return self.down(x)


@pytest.mark.parametrize(("after", "lines"), [("up", (5, 7)), (None, (7, None))])
def test_the_lines_between_two_layers(after: str | None, lines: tuple[int, int | None]) -> None:
    twins = [Twin("0", "up", None), Twin("1", "down", None)]
    where = Divergence(MODEL, "", 1.0, "code", after and "0", "1")
    found = place_of_divergence(Lines(), twins, where)
    assert found is not None
    first = inspect.getsourcelines(Lines)[1]
    assert found[1:] == tuple(line and first + line for line in lines)
    assert found.file.endswith("test_pair_files.py")


def test_a_map_is_written_and_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pair.py").write_text(HEADER + "def pair(): return replace(net_pair(), table=())\n")
    words = ("pair.py", "--steps", "0", "--map", "map.toml")
    assert run(monkeypatch, *words) == 0
    content = (folder / "map.toml").read_text()
    assert '"stem.kernel"' in content
    (folder / "map.toml").write_text(content.replace("stem.kernel", "stem.colonel"))
    assert run(monkeypatch, *words) == 2
    assert "the table names what the Flax model does not have" in capsys.readouterr().err
    assert run(monkeypatch, "glom", "--map", "map.toml") == 2
    assert "map is for one pair of a user's file; got map=map.toml" in capsys.readouterr().err


BROKEN = """
def fails(model, inputs): return 1 / 0

def pair():
    return [replace(net_pair(), name="broken", call_theirs=fails), net_pair()]
"""
PORT = """import jax
import numpy as np
import torch
from flax import nnx
from jaxmodels.compare import Pair, table_from_names

FLAX_EPSILON = 1e-5

class TorchMLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.down(torch.nn.functional.gelu(self.up(self.norm(x))))

class FlaxMLP(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, epsilon=FLAX_EPSILON, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.down(jax.nn.gelu(self.up(self.norm(x))))

def pair():
    ours, theirs = FlaxMLP(nnx.Rngs(0)), TorchMLP()
    inputs = {"x": np.random.default_rng(0).normal(size=(16, 8))}
    return Pair(name="mlp", ours=ours, theirs=theirs, table=table_from_names(ours, theirs), inputs=inputs)
"""


def test_the_optimizer_reaches_the_comparison(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {}

    def compare(pair: Pair, **options: object) -> Result:
        passed.update(options)
        return samples.equal(pair.name)

    monkeypatch.setattr(jobs, "compare", compare)
    (folder / "pair.py").write_text(HEADER + "def pair():\n    return net_pair()\n")
    assert run(monkeypatch, "pair.py", "--optimizer", "lion", "--mode", "train") == 0
    assert (passed["mode"], passed["training"].optimizer) == ("train", "lion")
