"""`jaxmodels convert`: PyTorch checkpoint <-> hub folder."""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxmodels.convert.bare_checkpoints import from_checkpoint
from jaxmodels.convert.core import to_state_dict
from jaxmodels.convert.files import WEIGHTS_SUFFIXES, write_state_dict
from jaxmodels.convert.hub import CONFIG_FILE, from_pretrained, is_hub_folder, save_pretrained


def run(
    source: Path,
    destination: Path,
    *,
    model: str | None = None,
    config: dict[str, Any] | None = None,
    encoder: dict[str, Any] | None = None,
    entry: str | None = None,
    overwrite: bool = False,
) -> int:
    """Converts and says what was done; see the command's help for the arguments.

    Raises:
      ValueError: both or neither are hub folders, the destination is in the way, or the weights do not fit.
      OSError: a file cannot be read or written.
    """
    if not source.exists():
        raise FileNotFoundError(f"no such checkpoint or folder: {source}")
    from_hub = is_hub_folder(source)
    _check_destination(source, destination, from_hub, overwrite)
    with _printed_log():
        if from_hub:
            given = {"model": model, "config": config, "encoder": encoder, "entry": entry}
            if extra := [f"--{name}" for name, value in given.items() if value is not None]:
                raise ValueError(
                    f"{source} has a {CONFIG_FILE}; {', '.join(extra)} would only be for a bare checkpoint"
                )
            loaded = from_pretrained(source)
            write_state_dict(destination, to_state_dict(loaded))
        else:
            loaded, assumed = from_checkpoint(
                source, model=model, config=config, encoder=encoder, entry=entry
            )
            if assumed:
                print(f"not visible in the checkpoint, taken as their defaults: {', '.join(assumed)}")
            save_pretrained(loaded, destination)
    state_dict = to_state_dict(loaded)
    size = sum(array.size for array in state_dict.values())
    print(f"{type(loaded).__name__}, {len(state_dict)} entries, {size:,} numbers -> {destination}")
    return 0


def _check_destination(source: Path, destination: Path, from_hub: bool, overwrite: bool) -> None:
    """ValueError unless the destination is of the other kind and may be written."""
    is_file_name = destination.suffix in WEIGHTS_SUFFIXES
    if from_hub != is_file_name:
        wanted = f"a file name with the ending {', '.join(WEIGHTS_SUFFIXES)}" if from_hub else "a folder"
        what = "a folder" if from_hub else "a checkpoint" if source.is_dir() else "a file"
        raise ValueError(f"the destination must be {wanted}, as {source} is {what}; got {destination}")
    if destination.exists() and destination.is_dir() == from_hub:
        what = "a file" if destination.is_file() else "a folder"
        raise ValueError(f"{destination} is {what}; choose another destination")
    if destination.exists() and not overwrite and not _is_empty_folder(destination):
        raise ValueError(f"{destination} exists; choose another destination or pass --overwrite")


@contextmanager
def _printed_log() -> Generator[None]:
    """What loading and saving log – chosen entries, removed prefixes, kept files – is printed."""
    handler = logging.StreamHandler(sys.stdout)
    level, logger = logging.getLogger("jaxmodels").level, logging.getLogger("jaxmodels")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
