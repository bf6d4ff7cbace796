"""PyTorch tensors and checkpoint files <-> NumPy arrays. Besides the comparison tool, the only import of torch."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import torch


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Bit-exact copy of a tensor; bfloat16, which NumPy lacks, becomes ml_dtypes.bfloat16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a state_dict with `weights_only=True`: whatever else a pickle would execute is refused."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or is damaged, and was not executed; "
            f"save it again as torch.save(model.state_dict(), path). PyTorch says: {_first_line(error)}"
        ) from error
    except (
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path} is damaged or not a PyTorch checkpoint: {_first_line(error) or type(error).__name__}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state_dict; it holds a {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path} must hold a state_dict, that is only tensors; these entries are not: {', '.join(others)}; "
            "if one of them is the state_dict, save that one alone"
        )
    return {str(key): to_numpy(value) for key, value in content.items()}


def write(path: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Writes a state_dict that `torch.load(path, weights_only=True)` reads."""
    torch.save({key: to_torch(array) for key, array in state_dict.items()}, path)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
