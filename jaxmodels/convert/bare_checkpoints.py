"""Models from PyTorch checkpoints without a configuration: class and sizes are read off keys and shapes."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from jaxmodels.checks import local_path
from jaxmodels.convert.core import load_state_dict
from jaxmodels.convert.files import read_weights
from jaxmodels.convert.hub import build, required_arguments
from jaxmodels.convert.tables import CONVERSIONS, accept_older_keys, conversion_of, infer_config
from jaxmodels.convert.wrappers import most_known, strip_prefixes


# Keys that tell the class. A MaMMUT comes first, as it may hold a SimpleViT.
KEYS_OF_CLASS = {
    "MaMMUT": {"text_cls_token", "img_queries"},
    "Glom": {"init_levels", "bottom_up.net.1.weight"},
    "ConditionalRoutedViT": {"to_patch_embedding.1.weight", "linear_head.2.weight"},
    "SimpleViT": {"to_patch_embedding.1.weight", "linear_head.weight"},
    "ScalableViT": {"to_patches.weight", "mlp_head.2.weight"},
    "HourglassTransformerLM": {"token_emb.weight", "pos_emb.weight", "to_logits.weight"},
}
ANY_REPETITION_BELOW = 64 * 2**20  # bytes
MOST_REPETITION = 16  # tied weights are listed twice and stored once


def from_checkpoint(
    path: str | os.PathLike,
    *,
    model: str | None = None,
    config: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
    entry: str | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[nnx.Module, list[str]]:
    """A model from a bare PyTorch checkpoint: class and sizes are read off its keys and shapes.

    Args:
      path: a .safetensors, .pt, .pth, .bin, .ckpt or .pth.tar file with a published package's state_dict, or a
        folder with one or with its shards.
      model: class name, where the keys do not tell.
      config: constructor arguments. Needed for those without a default that leave no trace in the shapes;
        they win over what the shapes say.
      encoder: the same for the image encoder of a MaMMUT.
      entry: which of several copies of the weights to load, for instance "ema".
      dtype: converts the weights.

    Returns:
      The model and the names of the arguments that were assumed to have their default values.

    Raises:
      ValueError: unknown keys, missing arguments (named), or weights that do not fit the arguments.
    """
    path = Path(local_path("path", path))
    arrays, entry = read_weights(path, entry)
    try:
        _require_stored(arrays, path)
        name = recognise(arrays) if model is None else model
        conversion_of(name)
        arrays = accept_older_keys(name, arrays)
        arrays = strip_prefixes(arrays, KEYS_OF_CLASS.get(name, ()), entry=entry, source=f"{path}: ")
        description = _described(name, arrays, config, encoder)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    told = description["config"].keys()
    assumed = [field.name for field in fields(conversion_of(name).config) if field.name not in told]
    built = build(description, arrays, source=str(path))
    try:
        return load_state_dict(built, arrays, dtype=dtype), assumed
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _require_stored(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """ValueError if the arrays are much larger than the file, as when a tensor repeats a single number."""
    stored = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
    claimed = {key: array.nbytes for key, array in arrays.items()}
    if sum(claimed.values()) > max(ANY_REPETITION_BELOW, MOST_REPETITION * stored):
        largest = max(claimed, key=lambda key: claimed[key])
        raise ValueError(
            f"the arrays would take {sum(claimed.values()):,} bytes, and the file has {stored:,}: {largest} of shape "
            f"{arrays[largest].shape} repeats the same numbers; save a copy of it (tensor.clone())"
        )


def _described(
    name: str,
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None,
    encoder: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What config.json would hold for these arrays."""
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
    missing = sorted(required_arguments(config_kind) - arguments.keys())
    if missing:
        raise ValueError(
            f"the shapes of the checkpoint do not tell these arguments of {name}: {', '.join(missing)}; "
            f"pass them as {argument}"
        )
    return arguments


def recognise(keys: Iterable[str]) -> str:
    """The class whose package writes such keys, with or without a prefix; ValueError where none does."""
    keys = sorted(keys)
    for name, sign in KEYS_OF_CLASS.items():
        if most_known(keys, sign) == len(sign):
            return name
    shown = f"the first are {', '.join(keys[:5])}" if keys else "there are none"
    raise ValueError(
        f"the keys are those of no published model ({shown}); if they are incomplete, or those of a bare "
        f"HourglassTransformer, pass the class as model, one of {', '.join(CONVERSIONS)}"
    )
