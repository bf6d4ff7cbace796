"""Weight files <-> dicts of NumPy arrays. Needs PyTorch only for the files that PyTorch writes."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from jaxmodels.atomic import atomic_write
from jaxmodels.data.readers.paths import LFS_POINTER, is_lfs_pointer


WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")  # that are written
READABLE_SUFFIXES = (*WEIGHTS_SUFFIXES, ".ckpt", ".pth.tar", ".pt.tar")
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
USUAL_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a weights file by their names; see `read_weights`."""
    return read_weights(path)[0]


def read_weights(path: Path, entry: str | None = None) -> tuple[dict[str, np.ndarray], str | None]:
    """Reads a weights file, or a folder with one or with its shards. Nothing in a file is executed.

    Args:
      path: the file, whose ending says of which kind it is, an index of shards, or a folder with one of these
        under its usual name, such as model.safetensors or pytorch_model.bin.index.json.
      entry: which of the state_dicts in a training checkpoint to take.

    Returns:
      The arrays, and `entry` unless it was used to choose. Arrays of a PyTorch file may share memory.

    Raises:
      FileNotFoundError, OSError: it cannot be opened.
      ValueError: another ending, a damaged file, or one that holds something else than arrays.
      ModuleNotFoundError: the file is PyTorch's, which is not installed.
    """
    if path.is_dir():
        found = find_weights(path)
        if found is None:
            raise ValueError(f"{path} is a folder without weights: none of {', '.join(USUAL_NAMES)} is in it")
        path = found
    if path.name.endswith(INDEX_SUFFIXES):
        return _read_shards(path), entry
    _check_suffix(path, READABLE_SUFFIXES)
    if not path.exists():
        raise FileNotFoundError(f"no such weights file: {path}")
    if not path.is_file():
        raise ValueError(f"{path} must be a regular file; it is a device, a FIFO or a socket")
    if is_lfs_pointer(path):
        raise ValueError(f"{path} holds no weights: {LFS_POINTER}")
    if path.suffix != ".safetensors":
        return _torch_io().read(path, entry)
    return _read_safetensors(path), entry


def find_weights(folder: Path) -> Path | None:
    """The weights file of a folder, or the index of its shards; None if there is neither under a usual name."""
    return next((folder / name for name in USUAL_NAMES if (folder / name).is_file()), None)


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The arrays of all files that an index names."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shard_of = {str(key): str(name) for key, name in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index} must be JSON with a weight_map, the file of every entry; {type(error).__name__}: {error}"
        ) from error
    arrays: dict[str, np.ndarray] = {}
    for name in sorted(set(shard_of.values())):
        if Path(name).name != name or name.endswith(INDEX_SUFFIXES):
            raise ValueError(f"{index} must name files beside it; got {name!r}")
        shard = read_state_dict(index.with_name(name))
        expected = {key for key, other in shard_of.items() if other == name}
        if wrong := sorted(shard.keys() ^ expected):
            shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5:,} more" if len(wrong) > 5 else "")
            raise ValueError(f"{index} and {name} differ in the entries {shown}; download both again")
        arrays |= shard
    return arrays


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    path.open("rb").close()  # for the right error: safetensors calls a file that may not be read missing
    try:
        arrays = safetensors.numpy.load_file(path)
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    except AttributeError as error:  # how safetensors says that NumPy has no such type
        kind = str(error).rpartition(" ")[2]
        raise ValueError(f"{path} holds numbers of a type that is not supported: {kind}") from error
    # safetensors.torch.save_model stores tied weights once and lists their other names in the metadata.
    aliases = {name: kept for name, kept in metadata.items() if kept in arrays and name not in arrays}
    return arrays | {name: arrays[kept] for name, kept in aliases.items()}


def write_state_dict(path: Path, state_dict: Mapping[str, np.ndarray | np.generic]) -> None:
    """Writes a weights file completely or not at all: an interrupted write leaves an earlier file as it was.

    Raises:
      OSError: it cannot be written.
      ValueError: another suffix.
      ModuleNotFoundError: the file is to be PyTorch's, which is not installed.
    """
    _check_suffix(path, WEIGHTS_SUFFIXES)
    write = write_safetensors if path.suffix == ".safetensors" else _torch_io().write
    with atomic_write(path) as temporary:
        write(temporary, {key: np.asarray(array) for key, array in state_dict.items()})


def write_safetensors(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file in place."""
    # safetensors writes a strided view wrongly. (np.ascontiguousarray would give a number one axis.)
    arrays = {key: np.asarray(array, order="C") for key, array in state_dict.items()}
    try:
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if not path.name.endswith(suffixes) or path.name in suffixes:
        known = ", ".join(suffixes)
        raise ValueError(f"the name of a weights file must end in one of {known}; got {path}")


def _torch_io():
    try:
        from jaxmodels.convert import torch_io
    except ModuleNotFoundError as error:
        if error.name != "torch":  # something that PyTorch itself misses
            raise
        raise ModuleNotFoundError(
            "PyTorch is needed for .pt, .pth, .bin and .ckpt files: pip install torch, or use .safetensors"
        ) from error
    return torch_io
