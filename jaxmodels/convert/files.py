"""Weight files <-> dicts of NumPy arrays. Needs PyTorch only for .pt, .pth and .bin."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy


TORCH_SUFFIXES = (".pt", ".pth", ".bin")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a weights file; the suffix says which kind. Nothing in the file is executed.

    Raises:
      FileNotFoundError, OSError: it cannot be opened.
      ValueError: another suffix, a damaged file, or one that holds something else than arrays.
    """
    _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such weights file: {path}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    return _torch_io().read(path)


def write_state_dict(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a weights file whole or not at all: an interrupted write leaves an earlier file as it was."""
    _check_suffix(path)
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            arrays = {key: np.ascontiguousarray(array) for key, array in state_dict.items()}
            safetensors.numpy.save_file(arrays, temporary, metadata={"format": "pt"})
        else:
            _torch_io().write(temporary, state_dict)


class replacing:
    """A temporary file beside `path` that takes its place when the block ends without an error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.temporary.chmod(0o644)
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise ValueError(f"the name of a weights file must end in one of {known}; got {path}")


def _torch_io():
    try:
        from jaxmodels.convert import torch_io
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "PyTorch is needed for .pt, .pth and .bin files: pip install 'jaxmodels[torch]', "
            "or use .safetensors"
        ) from error
    return torch_io
