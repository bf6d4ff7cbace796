"""Checkpoints as training code leaves them are read; small files that stand for gigabytes are not."""

import io
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from flax import nnx

import jaxmodels as jm
from jaxmodels.convert import from_checkpoint
from jaxmodels.convert.files import read_state_dict
from parity_tests.torch_files import ROWS, bits, published, saved, small, small_model
from tests.convert.shards import write_shards
from torch_reference.glom import Glom


# -- entries and prefixes around weights


@pytest.mark.parametrize("ending", [".ckpt", ".pth.tar", ".pt"])
def test_training_checkpoints(ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As training code saves them, from a model in DistributedDataParallel that torch.compile has wrapped."""
    average = {f"module._orig_mod.{key}": tensor + 1 for key, tensor in small().items()}
    content = {
        "epoch": 3,
        "state_dict": {f"module._orig_mod.{key}": tensor for key, tensor in small().items()},
        "state_dict_ema": average,
        "optimizer": torch.optim.Adam([torch.ones(1, requires_grad=True)]).state_dict(),
    }
    path = tmp_path / f"w{ending}"
    torch.save(content, path)
    model = jm.load_state_dict(small_model(), path)
    assert bits(jm.to_state_dict(model)) == bits(small())
    assert caplog.messages == [
        f"{path}: read from its entry 'state_dict'; also there: 'state_dict_ema', chosen with entry= (--entry)",
        f"{path}: removed from the keys: 'module.', '_orig_mod.'",
    ]
    model, _ = from_checkpoint(path, entry="state_dict_ema")
    assert bits(jm.to_state_dict(model)) == [*bits({key: tensor + 1 for key, tensor in small().items()})]
    with pytest.raises(
        ValueError, match=f"^{path}: entry must be one of 'state_dict', 'state_dict_ema'; got"
    ):
        jm.load_state_dict(model, path, entry="ema")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside of torch.compile
def test_wrapped_modules(tmp_path: Path) -> None:
    """The keys that PyTorch itself gives."""
    theirs = Glom(dim=4, levels=2, image_size=4, patch_size=2)
    theirs.bottom_up = torch.compile(theirs.bottom_up)
    for wrapped in (
        torch.compile(theirs),
        torch.optim.swa_utils.AveragedModel(theirs),
        torch.nn.DataParallel(theirs),
    ):
        state_dict = wrapped.state_dict()
        assert any("_orig_mod" in key for key in state_dict)
        model = jm.load_state_dict(small_model(), state_dict)
        plain = {key.replace("_orig_mod.", ""): tensor for key, tensor in theirs.state_dict().items()}
        assert bits(jm.to_state_dict(model)) == bits(plain)
        torch.save(state_dict, tmp_path / "w.pt")
        model, _ = from_checkpoint(tmp_path / "w.pt")
        assert bits(jm.to_state_dict(model)) == bits(plain)


def test_shards_of_pytorch(tmp_path: Path) -> None:
    write_shards(tmp_path, {key: tensor.numpy() for key, tensor in small().items()}, ".bin")
    model, _ = from_checkpoint(tmp_path)
    assert bits(jm.to_state_dict(model)) == bits(small())


def test_tied_weights_as_safetensors_saves_them(tmp_path: Path) -> None:
    case = ROWS["mammut/cross_attend_layers"]
    theirs = published(case)
    safetensors.torch.save_model(theirs, str(tmp_path / "tied.safetensors"))
    model = jm.load_state_dict(nnx.eval_shape(case.jax), tmp_path / "tied.safetensors")
    assert bits(jm.to_state_dict(model)) == bits(theirs.state_dict())


# -- small files that claim to be large


def test_a_tensor_that_repeats_one_number(tmp_path: Path) -> None:
    """1,570 bytes that stand for 4 GiB: the shape is compared before anything is copied."""
    path = tmp_path / "w.pt"
    huge = {"init_levels": torch.zeros(1).expand(2**30)}
    torch.save(huge, path)
    torch.save({**small(), "init_levels": torch.zeros(1).expand(2, 2**30)}, tmp_path / "inferred.pt")
    with limited_memory():
        for source in (path, huge):
            with pytest.raises(
                ValueError, match=r"init_levels: shape \(1073741824,\), the model needs \(2, 4\)"
            ):
                jm.load_state_dict(small_model(), source)
        with pytest.raises(
            ValueError, match=r"inferred.pt: the arrays would take 8,.* init_levels of shape .* repeats"
        ):
            from_checkpoint(tmp_path / "inferred.pt")


def test_tied_weights_that_repeat_one_number() -> None:
    case = ROWS["mammut/cross_attend_layers"]
    huge = torch.zeros(1).expand(2**30)
    state_dict = {**published(case).state_dict(), "token_emb.weight": huge, "to_logits.1.weight": huge}
    with limited_memory(), pytest.raises(ValueError, match=r"token_emb.weight: shape \(1073741824,\)"):
        jm.load_state_dict(nnx.eval_shape(case.jax), state_dict)


def test_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in archive_members({**small(), "zeros": torch.zeros(2**22)}):
            with archive.open(member, "w", force_zip64=True) as file:
                for _ in range(8 if member.endswith("/data/0") or len(data) > 2**20 else 1):
                    file.write(data)
    assert path.stat().st_size < 2**20
    with (
        limited_memory(),
        pytest.raises(ValueError, match=r"^\S* is compressed: its .* bytes would become 134,"),
    ):
        read_state_dict(path)


def test_a_little_compression_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in archive_members(small()):
            archive.writestr(member, data)
    assert bits(read_state_dict(path)) == bits(small())


def archive_members(content: object) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


@contextmanager
def limited_memory() -> Iterator[None]:
    """Another gigabyte of address space at the most."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
