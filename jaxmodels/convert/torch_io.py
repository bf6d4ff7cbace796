"""PyTorch tensors and checkpoint files <-> NumPy arrays. Besides the comparison tool, the only import of torch."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import torch

from jaxmodels.convert.wrappers import choose_entry


ANY_COMPRESSION_BELOW = 64 * 2**20  # bytes; what is below may be compressed as much as it likes
MOST_COMPRESSION = 20

_NUMPY = {
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
}  # fmt: skip


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Bit-exact copy of a tensor; bfloat16, which NumPy lacks, becomes ml_dtypes.bfloat16.

    Raises:
      ValueError: NumPy has nothing like it (sparse, quantised, without data, float8).
    """
    return view_as_numpy(tensor).copy()


def view_as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same as `to_numpy` without a copy where that is possible, also of a tensor that repeats few numbers."""
    kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
    if problem := _problem(tensor):
        raise ValueError(f"a tensor ({kind}) that cannot be an array: {problem}")
    try:
        tensor = tensor.detach().cpu().resolve_neg().resolve_conj()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # of a subclass of Tensor
        raise ValueError(f"a tensor ({kind}) that cannot be an array: {_first_line(error)}") from error


def _problem(tensor: torch.Tensor) -> str | None:
    """Why a tensor has no counterpart in NumPy, and what to save instead."""
    if tensor.is_meta:
        return "it has a shape and no data"
    if tensor.is_quantized:
        return "it is quantised; save tensor.dequantize()"
    if tensor.is_nested:
        return "it is a nested tensor; save its parts"
    if tensor.layout != torch.strided:
        return "it is sparse; save tensor.to_dense()"
    if tensor.dtype not in _NUMPY:
        return "NumPy has no such numbers; save tensor.float()"
    return None


def to_torch(array: np.ndarray) -> torch.Tensor:
    """The inverse of `to_numpy`."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def read(path: Path, entry: str | None = None) -> tuple[dict[str, np.ndarray], str | None]:
    """Reads a state_dict with `weights_only=True`: whatever else a pickle would execute is refused.

    Args:
      path: the file.
      entry: which state_dict to take, where the file holds several.

    Returns:
      The arrays, which may share memory with one another, and `entry` unless it was used.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is damaged, would execute something, holds no named tensors, or is compressed a lot.
    """
    with path.open("rb") as file:  # opened here, as PyTorch's own reader meets damage with an OSError
        _refuse_compressed(path, file)
        content = _load(path, file)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state_dict; it holds a {type(content).__name__}")
    state_dict, entry = choose_entry(content, entry, source=f"{path}: ")
    others = [
        f"{key!r} ({type(value).__name__})"
        for key, value in state_dict.items()
        if not (isinstance(key, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise ValueError(
            f"{path} must hold a state_dict, that is only named tensors; these entries are not: {shown}; "
            "if one of them is the state_dict, save that one alone"
        )
    arrays: dict[str, np.ndarray] = {}
    for key, tensor in state_dict.items():
        try:
            arrays[key] = view_as_numpy(tensor)
        except ValueError as error:
            raise ValueError(f"{path}: {key}: {error}") from error
    return arrays, entry


def _refuse_compressed(path: Path, file: BinaryIO) -> None:
    """PyTorch writes archives without compression; a small one may be packed to become gigabytes."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception:  # the older format, or damage: it can raise anything here, and is found later
        unpacked = 0
    file.seek(0)
    size = path.stat().st_size
    if unpacked > max(ANY_COMPRESSION_BELOW, MOST_COMPRESSION * size):
        raise ValueError(
            f"{path} is compressed: its {size:,} bytes would become {unpacked:,}; save it with torch.save"
        )


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
