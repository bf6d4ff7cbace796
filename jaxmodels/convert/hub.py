"""Hub folders: config.json, model.safetensors, a README card, and what else inference needs.

The weights are stored under the published package's keys and in PyTorch's layout, so the same file loads into
the package, into `torch_reference` and into the Flax model.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from jaxmodels.atomic import atomic_write_all
from jaxmodels.checks import local_path
from jaxmodels.convert.card import may_replace_card, model_card
from jaxmodels.convert.core import load_state_dict, to_state_dict
from jaxmodels.convert.files import find_weights, read_state_dict, write_safetensors
from jaxmodels.convert.plausible import require_plausible
from jaxmodels.convert.tables import conversion_of
from jaxmodels.data.preprocessing import Preprocessing
from jaxmodels.models.mammut import MaMMUT
from jaxmodels.models.simple_vit import SimpleViT


CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
PREPROCESSING_FILE, DECODER_FILE = "preprocessing.json", "decoder.safetensors"

logger = logging.getLogger("jaxmodels")


def save_pretrained(
    model: nnx.Module,
    folder: str | os.PathLike,
    *,
    preprocessing: Preprocessing | None = None,
    decoder: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes config.json, model.safetensors and a README card into `folder`, which is created if it does not exist.

    The files change together: an error, for instance a full disk, leaves what the folder held before.
    A README.md that somebody else wrote is kept.

    Args:
      model: any model of this package.
      folder: where to save it.
      preprocessing: what makes the model's inputs, and the names of its classes; written as preprocessing.json.
      decoder: arrays that were trained beside the model; written as decoder.safetensors.

    Raises:
      ValueError: `model`, or its image encoder, is not a model of this package.
      OSError: the folder cannot be written.
    """
    folder = Path(local_path("folder", folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the weights are saved in a folder, and {folder} is a file")
    description = describe(model)
    state_dict = to_state_dict(model)
    # The configuration comes last: a folder that has one has its weights.
    writers: dict[str, Callable[[Path], object]] = {
        WEIGHTS_FILE: lambda path: write_safetensors(path, state_dict)
    }
    if decoder is not None:
        writers[DECODER_FILE] = lambda path: write_safetensors(path, decoder)
    if preprocessing is not None:
        writers[PREPROCESSING_FILE] = lambda path: _write_json(path, preprocessing.to_json())
    if may_replace_card(folder / CARD_FILE):
        writers[CARD_FILE] = lambda path: path.write_text(
            model_card(description, state_dict, preprocessing), encoding="utf-8"
        )
    else:
        logger.info("%s was not written by jaxmodels and is kept", folder / CARD_FILE)
    writers[CONFIG_FILE] = lambda path: _write_json(path, description)
    earlier = [folder / name for name in (DECODER_FILE, PREPROCESSING_FILE) if name not in writers]
    with atomic_write_all([folder / name for name in writers], remove=earlier) as temporaries:
        for write, temporary in zip(writers.values(), temporaries, strict=True):
            write(temporary)


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, default=np.generic.item)  # also NumPy's integers
    path.write_text(text + "\n", encoding="utf-8")


def from_pretrained(folder: str | os.PathLike, *, dtype: DTypeLike | None = None) -> nnx.Module:
    """The model in `folder`, with the class that its config.json names.

    Args:
      folder: a folder that `save_pretrained` has written.
      dtype: converts the weights; by default they keep the type they are stored in.

    Raises:
      FileNotFoundError: the folder, its config.json or its model.safetensors does not exist.
      ValueError: the configuration or the weights do not fit; every problem is named.
    """
    folder = Path(local_path("folder", folder))
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} must be a folder with a {CONFIG_FILE}, as save_pretrained writes it"
        )
    description = _read_json(folder / CONFIG_FILE)
    weights = find_weights(folder) or folder / WEIGHTS_FILE
    arrays = read_state_dict(weights)
    model = build(description, arrays, source=str(folder / CONFIG_FILE))
    try:
        return load_state_dict(model, arrays, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def is_hub_folder(path: Path) -> bool:
    """Whether this is a folder as `save_pretrained` writes it, perhaps a damaged one, and not only of weights."""
    if not path.is_dir():
        return False
    if find_weights(path) is None:
        return True
    try:
        description = _read_json(path / CONFIG_FILE)
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return isinstance(description, Mapping) and {"model", "config"} <= description.keys()


def load_preprocessing(folder: str | os.PathLike) -> Preprocessing:
    """What makes the inputs of the model in `folder`, and the names of its classes.

    Raises:
      FileNotFoundError: the folder has no preprocessing.json; `jaxmodels train` and
        `save_pretrained(…, preprocessing=…)` write one.
      ValueError: the file is damaged; the entry is named.
    """
    path = Path(local_path("folder", folder)) / PREPROCESSING_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; jaxmodels train writes it, and save_pretrained(…, preprocessing=…) does"
        )
    description = _read_json(path)
    try:
        return Preprocessing.from_json(description)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_decoder(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays that were trained beside the model in `folder`, for instance GLOM's decoder to pixels.

    Raises:
      FileNotFoundError: the folder has no decoder.safetensors, as most tasks train none.
      ValueError: the file is damaged.
    """
    path = Path(local_path("folder", folder)) / DECODER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; only training that has a decoder writes it")
    return read_state_dict(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def describe(model: Any) -> dict[str, Any]:
    """The content of config.json."""
    name = type(model).__name__
    conversion_of(name)
    description: dict[str, Any] = {"model": name, "config": asdict(model.config)}
    encoder = getattr(model, "img_encoder", None)
    if encoder is not None:
        if not isinstance(encoder, SimpleViT):
            raise ValueError(
                f"img_encoder must be a SimpleViT to be saved; got a {type(encoder).__name__}; "
                "to save the rest alone, set model.img_encoder = None"
            )
        description["img_encoder"] = describe(encoder)
    return description


def build(description: Any, arrays: Mapping[str, np.ndarray], *, source: str) -> nnx.Module:
    """The model of a description, as shapes without arrays.

    Args:
      description: the content of config.json.
      arrays: its weights. Sizes that cannot be theirs are refused before anything of these sizes is built.
      source: what the messages begin with.

    Raises:
      ValueError: the description is incomplete, wrong, or that of another model than the weights'.
    """
    if not isinstance(description, Mapping) or not {"model", "config"} <= description.keys():
        raise ValueError(f"{source} must hold an object with 'model' and 'config'")
    name, arguments, encoder = (description.get(key) for key in ("model", "config", "img_encoder"))
    try:
        kind, config_kind, _ = conversion_of(str(name))
        require_plausible(arguments, arrays)
        config = _configuration(config_kind, arguments)
        parts: dict[str, Any] = {}
        if encoder is not None:
            if kind is not MaMMUT:
                raise ValueError(f"a {name} has no img_encoder")
            parts["img_encoder"] = build(encoder, arrays, source="img_encoder")
        return nnx.eval_shape(lambda: kind(config, **parts, rngs=nnx.Rngs(0)))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{source}: {error}") from error


def _configuration(kind: type[Any], arguments: Any) -> Any:
    """The configuration of these arguments, as config.json has them; ValueError where they do not fit."""
    if not isinstance(arguments, Mapping):
        raise ValueError(f"config must be an object with the arguments of {kind.__name__}")
    unknown = sorted(arguments.keys() - {field.name for field in fields(kind)})
    missing = sorted(required_arguments(kind) - arguments.keys())
    if unknown or missing:
        problems = [f"unknown: {field}" for field in unknown] + [f"missing: {field}" for field in missing]
        listed = "\n  ".join(problems)
        raise ValueError(f"the configuration does not fit {kind.__name__}\n  {listed}")
    return kind(**arguments)


def required_arguments(config_kind: type[Any]) -> set[str]:
    return {f.name for f in fields(config_kind) if f.default is MISSING and f.default_factory is MISSING}
