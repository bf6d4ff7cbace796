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
from jaxmodels.convert.card import may_replace_card, model_card
from jaxmodels.convert.core import load_state_dict, to_state_dict
from jaxmodels.convert.files import read_state_dict, write_safetensors
from jaxmodels.convert.tables import CONVERSIONS, accept_older_keys, conversion_of, infer_config
from jaxmodels.data.preprocessing import Preprocessing
from jaxmodels.models.mammut import MaMMUT
from jaxmodels.models.simple_vit import SimpleViT


CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
PREPROCESSING_FILE, DECODER_FILE = "preprocessing.json", "decoder.safetensors"

logger = logging.getLogger(__name__)


def save_pretrained(
    model: nnx.Module,
    folder: str | os.PathLike,
    *,
    preprocessing: Preprocessing | None = None,
    decoder: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes config.json, model.safetensors and a README card into `folder`, which is made if need be.

    The files change together: an error, for instance a full disk, leaves what the folder held before.
    A README.md that somebody else wrote is kept.

    Args:
      model: any model of this package.
      folder: where to save it.
      preprocessing: what makes the model's inputs, and the names of its classes; written as preprocessing.json.
      decoder: arrays that were trained beside the model; written as decoder.safetensors.

    Raises:
      ValueError: `model`, or its image encoder, is none of this package's.
      OSError: the folder cannot be written.
    """
    folder = Path(folder)
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
      folder: as written by `save_pretrained`.
      dtype: converts the weights; by default they keep the type they are stored in.

    Raises:
      FileNotFoundError: the folder, its config.json or its model.safetensors does not exist.
      ValueError: the configuration or the weights do not fit; every problem is named.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} must be a folder with a {CONFIG_FILE}, as save_pretrained writes it"
        )
    model = build(_read_json(folder / CONFIG_FILE), source=str(folder / CONFIG_FILE))
    return load_state_dict(model, folder / WEIGHTS_FILE, dtype=dtype)


def load_preprocessing(folder: str | os.PathLike) -> Preprocessing:
    """What makes the inputs of the model in `folder`, and the names of its classes.

    Raises:
      FileNotFoundError: the folder has no preprocessing.json; `jaxmodels train` and
        `save_pretrained(…, preprocessing=…)` write one.
      ValueError: the file is damaged; the entry is named.
    """
    path = Path(folder) / PREPROCESSING_FILE
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
    path = Path(folder) / DECODER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; only training that has a decoder writes it")
    return read_state_dict(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def from_checkpoint(
    path: str | os.PathLike,
    *,
    model: str | None = None,
    config: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[nnx.Module, list[str]]:
    """A model from a bare PyTorch checkpoint: class and sizes are read off its keys and shapes.

    Args:
      path: a .safetensors, .pt, .pth or .bin file with a published package's state_dict.
      model: class name, where the keys do not tell.
      config: constructor arguments. Needed for those without a default that leave no trace in the shapes;
        they win over what the shapes say.
      encoder: the same for the image encoder of a MaMMUT.
      dtype: converts the weights.

    Returns:
      The model and the names of the arguments that were assumed to have their default values.

    Raises:
      ValueError: unknown keys, missing arguments (named), or weights that do not fit the arguments.
    """
    arrays = read_state_dict(Path(path))
    try:
        name = recognise(arrays) if model is None else model
        description = _described(name, arrays, config, encoder)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    told = description["config"].keys()
    assumed = [field.name for field in fields(conversion_of(name).config) if field.name not in told]
    built = build(description, source=str(path))
    try:
        return load_state_dict(built, arrays, dtype=dtype), assumed
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _described(
    name: str,
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None,
    encoder: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What config.json would hold for these arrays."""
    conversion_of(name)
    arrays = accept_older_keys(name, arrays)
    description: dict[str, Any] = {"model": name, "config": _inferred(name, arrays, config, "config")}
    prefix = "img_encoder.vit."
    inside = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
    if name == "MaMMUT" and inside:
        arguments = _inferred("SimpleViT", inside, encoder, "encoder")
        description["img_encoder"] = {"model": "SimpleViT", "config": arguments}
    elif encoder is not None:
        raise ValueError(f"encoder is for a MaMMUT with an image encoder, and this is a {name} without one")
    return description


def _inferred(
    name: str, arrays: Mapping[str, np.ndarray], given: Mapping[str, Any] | None, argument: str
) -> dict[str, Any]:
    """Arguments read off the shapes, overridden by the given ones; ValueError names those still missing."""
    given = dict(given or {})
    config_kind = conversion_of(name).config
    known = {field.name for field in fields(config_kind)}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{name} has no argument {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        arguments = infer_config(name, arrays, given) | given
    except KeyError as error:
        raise ValueError(f"not the weights of a {name}: there is no {error.args[0]}") from error
    except (ArithmeticError, IndexError, TypeError) as error:
        raise ValueError(f"the shapes are not those of a {name} with {argument}={given}: {error}") from error
    missing = sorted(_required(config_kind) - arguments.keys())
    if missing:
        raise ValueError(
            f"the shapes of the checkpoint do not tell these arguments of {name}: {', '.join(missing)}; "
            f"pass them as {argument}"
        )
    return arguments


def recognise(keys: Mapping[str, Any]) -> str:
    """The class whose package writes such keys; ValueError where none does."""
    present = set(keys)
    signs = {
        "MaMMUT": {"text_cls_token", "img_queries"},
        "Glom": {"init_levels", "bottom_up.net.1.weight"},
        "ConditionalRoutedViT": {"to_patch_embedding.1.weight", "linear_head.2.weight"},
        "SimpleViT": {"to_patch_embedding.1.weight", "linear_head.weight"},
        "ScalableViT": {"to_patches.weight", "mlp_head.2.weight"},
        "HourglassTransformerLM": {"token_emb.weight", "pos_emb.weight", "to_logits.weight"},
    }
    bare = {key.removeprefix("net.") for key in present}
    for name, sign in signs.items():
        if sign <= (bare if name == "HourglassTransformerLM" else present):
            return name
    shown = f"the first are {', '.join(sorted(present)[:5])}" if present else "there are none"
    raise ValueError(
        f"the keys are those of no published model ({shown}); if they are incomplete, or those of a bare "
        f"HourglassTransformer, pass the class as model, one of {', '.join(CONVERSIONS)}"
    )


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


def build(description: Any, *, source: str) -> nnx.Module:
    """The model of a description, as shapes without arrays; ValueError names `source`."""
    if not isinstance(description, Mapping) or not {"model", "config"} <= description.keys():
        raise ValueError(f"{source} must hold an object with 'model' and 'config'")
    name, arguments, encoder = (description.get(key) for key in ("model", "config", "img_encoder"))
    try:
        kind, config_kind, _ = conversion_of(str(name))
        config = _configuration(config_kind, arguments)
        parts: dict[str, Any] = {}
        if encoder is not None:
            if kind is not MaMMUT:
                raise ValueError(f"a {name} has no img_encoder")
            parts["img_encoder"] = build(encoder, source="img_encoder")
        return nnx.eval_shape(lambda: kind(config, **parts, rngs=nnx.Rngs(0)))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{source}: {error}") from error


def _configuration(kind: type[Any], arguments: Any) -> Any:
    """The configuration of these arguments, as config.json has them; ValueError where they do not fit."""
    if not isinstance(arguments, Mapping):
        raise ValueError(f"config must be an object with the arguments of {kind.__name__}")
    unknown = sorted(arguments.keys() - {field.name for field in fields(kind)})
    missing = sorted(_required(kind) - arguments.keys())
    if unknown or missing:
        problems = [f"unknown: {field}" for field in unknown] + [f"missing: {field}" for field in missing]
        listed = "\n  ".join(problems)
        raise ValueError(f"the configuration does not fit {kind.__name__}\n  {listed}")
    return kind(**arguments)


def _required(config_kind: type[Any]) -> set[str]:
    return {f.name for f in fields(config_kind) if f.default is MISSING and f.default_factory is MISSING}
