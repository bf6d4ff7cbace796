"""Weight files <-> dicts of NumPy arrays. Needs PyTorch only for .pt, .pth and .bin."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from jaxmodels.atomic import atomic_write


WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a weights file; the suffix says which kind. Nothing in the file is executed.

    Raises:
      FileNotFoundError, OSError: it cannot be opened.
      ValueError: another suffix, a damaged file, or one that holds something else than arrays.
      ModuleNotFoundError: the file is PyTorch's, which is not installed.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; from_pretrained reads folders, here a weights file is needed")
    _check_suffix(path)
    if not path.exists():
        raise FileNotFoundError(f"no such weights file: {path}")
    if path.suffix != ".safetensors":
        return _torch_io().read(path)
    path.open("rb").close()  # for the right error: safetensors calls a file that may not be read missing
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    except AttributeError as error:  # how safetensors says that NumPy has no such type
        kind = str(error).rpartition(" ")[2]
        raise ValueError(f"{path} holds numbers of a type that is not supported: {kind}") from error


def write_state_dict(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a weights file whole or not at all: an interrupted write leaves an earlier file as it was.

    Raises:
      OSError: it cannot be written.
      ValueError: another suffix.
      ModuleNotFoundError: the file is to be PyTorch's, which is not installed.
    """
    _check_suffix(path)
    write = write_safetensors if path.suffix == ".safetensors" else _torch_io().write
    with atomic_write(path) as temporary:
        write(temporary, state_dict)


def write_safetensors(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file in place."""
    # safetensors writes a strided view wrongly. (np.ascontiguousarray would give a number one axis.)
    arrays = {key: np.asarray(array, order="C") for key, array in state_dict.items()}
    try:
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in WEIGHTS_SUFFIXES:
        known = ", ".join(WEIGHTS_SUFFIXES)
        raise ValueError(f"the name of a weights file must end in one of {known}; got {path}")


def _torch_io():
    try:
        from jaxmodels.convert import torch_io
    except ModuleNotFoundError as error:
        if error.name != "torch":  # something that PyTorch itself misses
            raise
        raise ModuleNotFoundError(
            "PyTorch is needed for .pt, .pth and .bin files: pip install 'jaxmodels[torch]', "
            "or use .safetensors"
        ) from error
    return torch_io
