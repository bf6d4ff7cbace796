"""PyTorch checkpoints, as files and as tensors: each bit arrives, and nothing in a file is executed."""

import io
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import jaxmodels as jm
from jaxmodels import __main__
from jaxmodels.convert import from_checkpoint
from jaxmodels.convert.files import read_state_dict, write_state_dict
from jaxmodels.convert.torch_io import to_numpy, to_torch
from parity_tests.cases import CASES
from parity_tests.cases.case import Case
from parity_tests.cases.mammut import VIT
from parity_tests.torch_files import ROWS, as_bytes, bits, published, saved, small, small_model
from torch_reference.glom import Glom


EVERY_MODEL = pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def arguments_of(case: Case) -> list[str]:
    """What the command line has to be told, and more."""
    config = {key: value for key, value in asdict(case.config).items()}
    arguments = ["--model", type(case.config).__name__.removesuffix("Config"), "--config", json.dumps(config)]
    return arguments + (["--encoder", json.dumps(asdict(VIT))] if "encoder" in case.name else [])


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `jaxmodels convert …` in this process and returns (exit status, stderr)."""
    for variable in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))  # put back afterwards

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["jaxmodels", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            __main__.main()
        return caught.value.code, capsys.readouterr().err

    return call


# -- there and back


def test_every_model_has_a_row() -> None:
    kinds = {type(case.config).__name__ for case in CASES}
    assert {type(case.config).__name__ for case in ROWS.values()} == kinds
    assert len(ROWS) == 8


@EVERY_MODEL
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_through_the_command_line(case: Case, dtype: torch.dtype, convert: Command, tmp_path: Path) -> None:
    """Published model -> .pt -> hub folder -> .pt -> published model, with identical bits at each station."""
    theirs = published(case, dtype)
    expected = bits(theirs.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    assert convert(tmp_path / "theirs.pt", tmp_path / "hub", *arguments_of(case)) == (0, "")
    assert convert(tmp_path / "hub", tmp_path / "back.pt") == (0, "")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert bits(back) == expected
    other = published(case, dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(back, strict=True)
    assert bits(other.state_dict()) == expected
    stored = read_state_dict(tmp_path / "hub" / "model.safetensors")
    assert bits({key: stored[key] for key in back}) == expected
    assert jm.from_pretrained(tmp_path / "hub").config == case.config


@EVERY_MODEL
def test_files_of_the_published_package(case: Case, tmp_path: Path) -> None:
    """Also in PyTorch's older format and with an older ending."""
    state_dict = published(case).state_dict()
    for name, zipped in (("new.pt", True), ("older.pth", False), ("hub.bin", True)):
        torch.save(state_dict, tmp_path / name, _use_new_zipfile_serialization=zipped)
        model = jm.load_state_dict(nnx.eval_shape(case.jax), tmp_path / name)
        assert bits(jm.to_state_dict(model)) == bits(state_dict)


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "w.pt")
    command = [sys.executable, "-m", "jaxmodels", "convert", "w.pt", "hub"]
    environment = {**os.environ, "PYTHONPATH": str(Path(jm.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Glom, 12 entries" in done.stdout
    assert bits(jm.to_state_dict(jm.from_pretrained(tmp_path / "hub"))) == bits(small())


def test_what_training_leaves_in_a_state_dict(tmp_path: Path) -> None:
    """Parameters that need gradients, views of one storage, and the metadata of an OrderedDict."""
    whole = torch.randn(100)
    state_dict = small()
    state_dict["init_levels"] = whole[10:18].view(2, 4)
    state_dict["image_to_tokens.1.bias"] = torch.nn.Parameter(whole[::3][:4])
    torch.save(state_dict, tmp_path / "w.pt")
    assert bits(read_state_dict(tmp_path / "w.pt")) == bits(state_dict)


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    arrays = {"a": np.float32(1).reshape(()), "b": np.ones((2, 3))}
    for name in ("one.pt", "two.bin"):
        write_state_dict(tmp_path / name, arrays)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.bin").read_bytes()
    assert bits(read_state_dict(tmp_path / "one.pt")) == bits(arrays)


def test_a_file_that_outgrows_its_limit(tmp_path: Path) -> None:
    """As on a full disk: the earlier file stays, no other is left, and the system's reason is told."""
    path = tmp_path / "w.pt"
    write_state_dict(path, {"w": np.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_state_dict(path, {"w": np.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["w.pt"]
    assert bits(read_state_dict(path)) == bits({"w": np.ones(3)})


# -- tensors


@pytest.mark.parametrize(
    "kind",
    [
        torch.nn.Parameter,
        lambda t: t.clone().requires_grad_() * 1,
        lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: t.flip(0).flip(0),
        torch.nn.Buffer,
        lambda t: torch._neg_view(-t),
    ],
    ids=["parameter", "in a graph", "transposed", "strided", "flipped", "buffer", "negated"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors(kind: Callable, dtype: torch.dtype) -> None:
    expected = {key: tensor.to(dtype) for key, tensor in small().items()}
    model = jm.load_state_dict(small_model(), {key: kind(tensor) for key, tensor in expected.items()})
    assert bits(jm.to_state_dict(model)) == bits(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_bit_pattern_of_a_tensor_survives(dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).view(4096, 16)
    config = {"dim": 16, "levels": 2, "image_size": 64, "patch_size": 1}
    state_dict = Glom(**config).state_dict() | {"pos_emb.weight": every}
    model = nnx.eval_shape(lambda: jm.Glom(jm.GlomConfig(**config), rngs=nnx.Rngs(0)))
    jm.load_state_dict(model, state_dict)
    assert np.asarray(model.pos_emb.embedding[...]).tobytes() == as_bytes(every)
    assert bits(jm.to_state_dict(model)) == bits(state_dict)


def test_later_training_does_not_reach_the_model() -> None:
    state_dict = small()
    expected = bits(state_dict)
    model = jm.load_state_dict(small_model(), state_dict)
    for tensor in state_dict.values():
        tensor.fill_(7)
    assert bits(jm.to_state_dict(model)) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_are_no_views_of_tensors(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, dtype=dtype)
    array = to_numpy(tensor)
    back = to_torch(array)
    tensor.fill_(7)
    assert as_bytes(array) == as_bytes(torch.ones(3, dtype=dtype))
    array[...] = 5
    assert as_bytes(back) == as_bytes(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize(
    ("make", "kind", "way_out"),
    [
        (lambda: torch.eye(2, 4).to_sparse(), "torch.sparse_coo", r"it is sparse; save tensor.to_dense\(\)"),
        (lambda: torch.empty(2, 4, device="meta"), "meta", "it has a shape and no data"),
        (lambda: torch.zeros(2, 4).to(torch.float8_e4m3fn), "torch.float8_e4m3fn", r"save tensor.float\(\)"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(2, 4), 1.0, 0, torch.qint8),
            "torch.qint8",
            r"save tensor.dequantize\(\)",
        ),
        (
            lambda: torch.nested.nested_tensor([torch.ones(2)]),
            "torch.float32",
            "it is a nested tensor; save its parts",
        ),
    ],
    ids=["sparse", "meta", "float8", "quantised", "nested"],
)
def test_tensors_that_are_no_arrays(make: Callable, kind: str, way_out: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # of deprecated kinds
        tensor = make()
    state_dict = {**small(), "init_levels": tensor}
    with pytest.raises(
        ValueError, match=f"^init_levels: a tensor .*{kind}.* that cannot be an array: .*{way_out}"
    ):
        jm.load_state_dict(small_model(), state_dict)
    if kind != "meta":
        torch.save(state_dict, tmp_path / "w.pt")
        with pytest.raises(
            ValueError, match=f"^{tmp_path}/w.pt: init_levels: a tensor .*{kind}.*{way_out}|{MORE}"
        ):
            read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("row", "key", "problem"),
    [
        ("glom/local_consensus_radius", "attention.non_local_mask", "not the values that the architecture determines"),
        ("mammut/cross_attend_layers", "layers.1.0.fn.norm.beta", "not the values that the architecture determines"),
        ("mammut/cross_attend_layers", "to_logits.1.weight", "must equal token_emb.weight, to which it is tied"),
    ],
)  # fmt: skip
def test_determined_entries_are_checked(row: str, key: str, problem: str, tmp_path: Path) -> None:
    case = ROWS[row]
    state_dict = {k: tensor.clone() for k, tensor in published(case).state_dict().items()}
    state_dict[key].view(-1)[-1] = 1
    torch.save(state_dict, tmp_path / "w.pt")
    model = nnx.eval_shape(case.jax)
    for source, prefix in ((state_dict, ""), (tmp_path / "w.pt", f"{tmp_path}/w.pt: ")):
        name = type(model).__name__
        with pytest.raises(
            ValueError, match=f"^{prefix}the state_dict does not fit {name}\n  {key}: {problem}$"
        ):
            jm.load_state_dict(model, source)
    assert all(isinstance(v, jax.ShapeDtypeStruct) for v in jax.tree.leaves(nnx.state(model)))


# -- files that are refused


class MakesAFolder:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return (os.mkdir, (self.path,))


class RunsACommand(MakesAFolder):
    def __reduce__(self) -> tuple:
        return (os.system, (f"touch '{self.path}'",))


class Evaluates(MakesAFolder):
    def __reduce__(self) -> tuple:
        return (eval, (f"__import__('pathlib').Path({self.path!r}).touch()",))


@pytest.mark.parametrize("trap", [MakesAFolder, RunsACommand, Evaluates])
@pytest.mark.parametrize("place", ["value", "extra entry", "key", "whole"])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_nothing_in_a_file_is_executed(
    trap: type, place: str, form: str, convert: Command, tmp_path: Path
) -> None:
    created, path = tmp_path / "created", tmp_path / "w.pt"
    bait = trap(created)
    content = {
        "value": lambda: {**small(), "init_levels": bait},
        "extra entry": lambda: {**small(), "note": [1, {"deep": bait}]},
        "key": lambda: {**small(), bait: 1},
        "whole": lambda: bait,
    }[place]()
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    for call in (read_state_dict, from_checkpoint, lambda path: jm.load_state_dict(small_model(), path)):
        with pytest.raises(ValueError, match=rf"^{path} is damaged or "):
            call(path)
    status, errors = convert(path, tmp_path / "hub")
    assert status == 2
    assert errors.startswith(f"jaxmodels: {path} is damaged or ")
    assert errors.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["w.pt"]
    if form == "zip":  # the trap works, where it is let
        torch.load(path, weights_only=False)
        assert created.exists()


@pytest.mark.parametrize(
    ("trap", "reason"),
    [
        (Evaluates, "Unsupported global: GLOBAL eval was not an allowed global by default"),
        (RunsACommand, "Trying to load unsupported GLOBAL posix.system whose module posix is blocked"),
    ],
)
def test_the_reason_is_told(trap: type, reason: str, tmp_path: Path) -> None:
    torch.save({"w": trap(tmp_path / "created")}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"nothing in it was run \({reason}\); save a whole model"):
        read_state_dict(tmp_path / "w.pt")


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


DAMAGED = "is damaged or not a PyTorch checkpoint: "
MORE = "is damaged or holds more than tensors, and nothing in it was run"
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", DAMAGED),
    "text": (lambda: b"weights, honestly\n" * 9, MORE),
    "PNG": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), MORE),
    "zeros": (lambda: bytes(64), MORE),
    "zip": (lambda: zipped(readme=b"hello"), DAMAGED),
    "zip with a pickle": (lambda: zipped(**{"a/data.pkl": pickle.dumps({"w": [1.0]}, 2), "a/version": b"3"}), ""),
    "tar": (lambda: b"storages".ljust(257, b"\0") + b"ustar\0" + bytes(512), ""),
    "safetensors": (lambda: (b"\x02" + bytes(7) + b"{}"), ""),
    "JSON": (lambda: b'{"w": [1.0]}', MORE),
    "truncated": (lambda: saved(small())[:-200], DAMAGED),
    "truncated legacy": (lambda: saved(small(), _use_new_zipfile_serialization=False)[:-20], ""),
    "list": (lambda: saved([torch.ones(1)]), "must hold a state_dict; it holds a list"),
    "pickled list": (lambda: pickle.dumps([1.0]), ""),
    "tensor": (lambda: saved(torch.ones(1)), "must hold a state_dict; it holds a Tensor"),
    "None": (lambda: saved(None), "must hold a state_dict; it holds a NoneType"),
    "module": (lambda: saved(torch.nn.Linear(1, 1)), MORE + r" \(Unsupported global: GLOBAL torch.nn.modules.linear"),
    "optimizer": (lambda: saved(torch.optim.Adam([torch.ones(1)]).state_dict()), r"'state' \(dict\)"),
    "training checkpoint": (
        lambda: saved({"optimizer": {"state": {}, "param_groups": []}, "step": 3, "scale": torch.ones(1)}),
        r"must hold a state_dict, that is only named tensors; these entries are not: 'optimizer' \(dict\), "
        r"'step' \(int\); if one of them is the state_dict, save that one alone",
    ),
    "numbers as keys": (lambda: saved({1: torch.ones(1)}), r"these entries are not: 1 \(Tensor\)"),
    "many numbers": (lambda: saved({f"{i}": i for i in range(9)}), r"'4' \(int\) and 4 more; if one"),
    "arrays": (lambda: saved({"w": np.ones(1)}), MORE),
    "TorchScript": (lambda: script(), ""),
}  # fmt: skip


def script() -> bytes:
    file = io.BytesIO()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), file)
    return file.getvalue()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("ending", [".pt", ".bin"])
def test_files_of_another_kind(name: str, ending: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    path = tmp_path / f"w{ending}"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=rf"^{path} {message}|^{path} .*{message}") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert "`False`" not in str(caught.value)  # PyTorch's advice how to let the code run


@pytest.mark.parametrize("legacy", [False, True])
def test_damage_anywhere(legacy: bool, tmp_path: Path) -> None:
    """Cut or overwritten anywhere, a file is read, or refused by name; it never ends in another exception."""
    whole = saved(small(), _use_new_zipfile_serialization=not legacy)
    path, rng, refused = tmp_path / "w.pt", random.Random(0), 0
    for i in range(300):
        content = bytearray(whole)
        if i % 3 == 0:
            del content[rng.randrange(len(content)) :]
        else:
            for _ in range(4):
                content[rng.randrange(len(content) // (8 if i % 3 == 1 else 1))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            read_state_dict(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} ")  # noqa: PT017 - some damage is in numbers
            refused += 1
    assert refused > 150


def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The system's error stays what it is."""
    path = tmp_path / "w.pt"
    path.write_bytes(saved(small()))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PermissionError):
        read_state_dict(path)
