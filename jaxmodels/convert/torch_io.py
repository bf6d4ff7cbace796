"""PyTorch tensors and checkpoint files <-> NumPy arrays. Besides the comparison tool, the only import of torch."""

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import torch


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Bit-exact copy of a tensor; bfloat16, which NumPy lacks, becomes ml_dtypes.bfloat16.

    Raises:
      ValueError: NumPy has nothing like it (sparse, quantised, without data, float8).
    """
    try:
        tensor = tensor.detach().cpu().resolve_neg().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
        return tensor.numpy().copy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
        raise ValueError(f"a tensor ({kind}) that cannot be an array: {_first_line(error)}") from error


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a state_dict with `weights_only=True`: whatever else a pickle would execute is refused.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is damaged, would execute something, or holds anything else than named tensors.
    """
    with path.open("rb") as file:  # opened here, as PyTorch's own reader meets damage with an OSError
        content = _load(path, file)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state_dict; it holds a {type(content).__name__}")
    others = [
        f"{key!r} ({type(value).__name__})"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise ValueError(
            f"{path} must hold a state_dict, that is only named tensors; these entries are not: {shown}; "
            "if one of them is the state_dict, save that one alone"
        )
    try:
        return {key: to_numpy(value) for key, value in content.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _load(path: Path, file: BinaryIO) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what PyTorch says of odd files
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged or holds more than tensors, and nothing in it was run ({_reason(error)}); "
            "save a whole model or a training checkpoint as torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # a damaged file can raise anything: IndexError, UnicodeDecodeError, …
        raise ValueError(
            f"{path} is damaged or not a PyTorch checkpoint: {_first_line(error) or type(error).__name__}"
        ) from error


def write(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a state_dict that `torch.load(path, weights_only=True)` reads."""
    # By way of memory: PyTorch's own writer hides why it fails, and puts the file's name into the file.
    content = io.BytesIO()
    torch.save({key: to_torch(array) for key, array in state_dict.items()}, content)
    path.write_bytes(content.getbuffer())


def _reason(error: pickle.UnpicklingError) -> str:
    """What PyTorch's unpickler stumbled over, without the advice how to let it run the code."""
    detail = str(error).partition("\n\nCheck the documentation")[0].rpartition("WeightsUnpickler error: ")[2]
    return detail.strip().rpartition("\n")[2].partition(" Please use")[0].rstrip(".")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].partition(" In PyTorch 2.6")[0]  # the same advice
