"""`jaxmodels convert`: PyTorch checkpoint <-> hub folder."""

from pathlib import Path
from typing import Any

from rich.console import Console

from jaxmodels.convert.core import to_state_dict
from jaxmodels.convert.files import TORCH_SUFFIXES, write_state_dict
from jaxmodels.convert.hub import CONFIG_FILE, from_checkpoint, from_pretrained, save_pretrained


def run(
    source: Path,
    destination: Path,
    *,
    model: str | None = None,
    config: dict[str, Any] | None = None,
    encoder: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> int:
    """Converts and says what was done; see the command's help for the arguments.

    Raises:
      ValueError: both or neither are folders, the destination is in the way, or the weights do not fit.
      OSError: a file cannot be read or written.
    """
    console = Console()
    if not source.exists():
        raise FileNotFoundError(f"no such checkpoint or folder: {source}")
    to_file = destination.suffix in (".safetensors", *TORCH_SUFFIXES)
    if source.is_dir() != to_file:
        wanted = "a file (.safetensors, .pt, .pth or .bin)" if source.is_dir() else "a folder"
        raise ValueError(f"destination must be {wanted} when source is {source}; got {destination}")
    if destination.exists() and not overwrite and not _is_empty_folder(destination):
        raise ValueError(f"{destination} exists; choose another destination or pass --overwrite")
    if source.is_dir():
        loaded = from_pretrained(source)
        write_state_dict(destination, to_state_dict(loaded))
    else:
        loaded, assumed = from_checkpoint(source, model=model, config=config, encoder=encoder)
        if assumed:
            console.print(f"not visible in the checkpoint, taken as their defaults: {', '.join(assumed)}")
        save_pretrained(loaded, destination)
    state_dict = to_state_dict(loaded)
    size = sum(array.size for array in state_dict.values())
    place = destination if to_file else destination / CONFIG_FILE
    console.print(f"{type(loaded).__name__}, {len(state_dict)} entries, {size:,} numbers -> {place}")
    return 0


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
