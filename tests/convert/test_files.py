"""Weight files: what is damaged is refused by name, and a write is complete or does not happen."""

import json
import os
import resource
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxmodels.convert import files
from jaxmodels.convert.files import read_state_dict, write_state_dict
from tests.convert.small_models import bits
from tests.disk import full_disk, names, unprivileged


STATE_DICT = {
    "scalar": np.float32(-0.0).reshape(()),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "half": np.array([0x7E01, 0x8000], np.uint16).view(np.float16),
    "brain": np.array([0x7FC1, 0x8000], np.uint16).view(ml_dtypes.bfloat16),
    "mask": np.array([[True, False]]),
    "none": np.zeros((0, 3), np.float32),
}


def test_safetensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "w.safetensors"
    write_state_dict(path, STATE_DICT)
    assert bits(dict(sorted(read_state_dict(path).items()))) == bits(dict(sorted(STATE_DICT.items())))
    assert names(path.parent) == ["w.safetensors"]


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        write_state_dict(tmp_path / name, STATE_DICT)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_is_as_readable_as_any_other_of_the_user(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "w.safetensors", STATE_DICT)
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("w.safetensors", "plain")}
    assert len(modes) == 1


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def float8() -> bytes:
    entry = {"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    return header(json.dumps(entry).encode()) + b"\0\0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"weights, honestly",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"PK\x03\x04" + bytes(64),
        header(b"{}")[:-1],
        header(b"[]"),
        header(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        header(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}') + bytes(8),
        struct.pack("<Q", 2**62) + b"{}",
        b"{}" * 40,
        safetensors.numpy.save({"w": np.ones(9)})[:-1],
        safetensors.numpy.save({"w": np.ones(9)}) + b"\0",
    ],
)
def test_damaged_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} is damaged or not a safetensors file: \S"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_pointer_in_the_place_of_weights(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 100\n")
    with pytest.raises(
        ValueError, match=rf"^{path} holds no weights: it is a pointer of Git LFS .*git lfs pull"
    ):
        read_state_dict(path)


def test_safetensors_cut_anywhere(tmp_path: Path) -> None:
    whole = safetensors.numpy.save({"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float16)})
    path = tmp_path / "w.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
            read_state_dict(path)


def test_safetensors_with_types_that_numpy_lacks(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(float8())
    with pytest.raises(
        ValueError, match=r"w.safetensors holds numbers of a type that is not supported: 'float8"
    ):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["w", "w.safetensors.gz", ".pt", ".pth.tar", "w.PT", "w.tar", "w.npz"])
def test_unknown_endings(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"must end in one of .safetensors, .pt, .pth, .bin, .ckpt, .pth.tar, .*; got .*" + name,
    ):
        read_state_dict(tmp_path / name)
    with pytest.raises(ValueError, match=r"must end in one of .safetensors, .pt, .pth, .bin; got .*" + name):
        write_state_dict(tmp_path / name, {})
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b""


@pytest.mark.parametrize("ending", [".ckpt", ".pth.tar"])
def test_endings_that_are_only_read(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ValueError, match=r"must end in one of .safetensors, .pt, .pth, .bin; got"):
        write_state_dict(tmp_path / f"w{ending}", STATE_DICT)
    assert names(tmp_path) == []


@pytest.mark.parametrize("ending", files.READABLE_SUFFIXES)
def test_what_is_no_file(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class TorchIo:
        read = Path.read_bytes

    monkeypatch.setattr(files, "_torch_io", lambda: TorchIo)
    with pytest.raises(FileNotFoundError, match=f"no such weights file: .*/w{ending}"):
        read_state_dict(tmp_path / f"w{ending}")
    (tmp_path / f"w{ending}").mkdir()
    with pytest.raises(
        ValueError, match=f"w{ending} is a folder without weights: none of model.safetensors, mod"
    ):
        read_state_dict(tmp_path / f"w{ending}")


@pytest.mark.parametrize("ending", files.READABLE_SUFFIXES)
def test_what_has_no_end(tmp_path: Path, ending: str) -> None:
    """Nobody writes into this FIFO: whoever opened it would wait for ever."""
    os.mkfifo(tmp_path / f"a{ending}")
    (tmp_path / f"b{ending}").symlink_to("/dev/zero")
    for name in (f"a{ending}", f"b{ending}"):
        with pytest.raises(
            ValueError, match=f"{name} must be a regular file; it is a device, a FIFO or a socket"
        ):
            read_state_dict(tmp_path / name)


def test_files_of_others(open_folder: Path) -> None:
    path = open_folder / "w.safetensors"
    write_state_dict(path, STATE_DICT)
    before = path.read_bytes()
    open_folder.chmod(0o555)
    with unprivileged(), pytest.raises(PermissionError):
        write_state_dict(path, {"w": np.zeros(3)})
    open_folder.chmod(0o755)
    assert path.read_bytes() == before
    assert names(open_folder) == ["w.safetensors"]
    path.chmod(0)
    with unprivileged(), pytest.raises(PermissionError, match="Permission denied"):
        read_state_dict(path)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
def test_pytorch_files_without_pytorch(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"w{ending}").write_bytes(b"")
    way_out = r"PyTorch is needed .*: pip install torch, or use .safetensors"
    with pytest.raises(ModuleNotFoundError, match=way_out):
        read_state_dict(tmp_path / f"w{ending}")
    if ending in files.WEIGHTS_SUFFIXES:
        with pytest.raises(ModuleNotFoundError, match=way_out):
            write_state_dict(tmp_path / f"other{ending}", STATE_DICT)
    assert names(tmp_path) == [f"w{ending}"]


def test_a_broken_pytorch_says_so_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import a_module_that_is_not_there")
    (tmp_path / "w.pt").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torch", "jaxmodels.convert.torch_io"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        read_state_dict(tmp_path / "w.pt")


# -- complete or not at all


def interrupted(path: Path, arrays: object) -> None:
    path.write_bytes(b"the first half")
    raise KeyboardInterrupt


def rust(arrays: object, path: Path, **options: object) -> None:
    Path(path).write_bytes(b"the first half")
    raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fails", [full_disk, interrupted])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable, earlier: bool
) -> None:
    path = tmp_path / "w.safetensors"
    if earlier:
        write_state_dict(path, {"w": np.ones(3)})
    monkeypatch.setattr(files, "write_safetensors", fails)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_state_dict(path, STATE_DICT)
    assert names(tmp_path) == (["w.safetensors"] if earlier else [])
    if earlier:
        assert bits(read_state_dict(path)) == bits({"w": np.ones(3)})


def test_what_safetensors_cannot_write_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    write_state_dict(path, {"w": np.ones(3)})
    monkeypatch.setattr(safetensors.numpy, "save_file", rust)
    with pytest.raises(OSError, match="could not be written: I/O error: No space left"):
        write_state_dict(path, STATE_DICT)
    assert names(tmp_path) == ["w.safetensors"]
    assert bits(read_state_dict(path)) == bits({"w": np.ones(3)})


def test_a_file_that_outgrows_its_limit(tmp_path: Path) -> None:
    """The operating system stops the write halfway, as on a full disk."""
    path = tmp_path / "w.safetensors"
    write_state_dict(path, {"w": np.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"w.safetensors\S* could not be written: .*File too large"):
            write_state_dict(path, {"w": np.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["w.safetensors"]
    assert bits(read_state_dict(path)) == bits({"w": np.ones(3)})


def test_a_place_that_is_taken_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_state_dict(tmp_path / "w.safetensors", STATE_DICT)
    assert names(tmp_path) == ["w.safetensors"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):
        write_state_dict(tmp_path / "file" / "w.safetensors", STATE_DICT)
