"""Hub folders: config.json, model.safetensors and a README card.

The weights are stored under the published package's keys and in PyTorch's layout, so the same file loads into
the package, into `torch_reference` and into the Flax model.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

from jaxmodels.convert.core import load_state_dict, to_state_dict
from jaxmodels.convert.files import read_state_dict, replacing, write_state_dict
from jaxmodels.convert.tables import accept_older_keys, conversion_of, infer_config


CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"


def save_pretrained(model: nnx.Module, folder: str | os.PathLike) -> None:
    """Writes config.json, model.safetensors and a README card into `folder`, which is made if need be.

    Every file is written whole or not at all; the configuration comes last, so that a folder with a
    configuration has its weights.

    Raises:
      ValueError: `model` is none of this package's.
      OSError: the folder cannot be written; what it held before is still there.
    """
    folder = Path(folder)
    description = describe(model)
    state_dict = to_state_dict(model)
    write_state_dict(folder / WEIGHTS_FILE, state_dict)
    with replacing(folder / CARD_FILE) as path:
        path.write_text(_card(description, state_dict))
    with replacing(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(description, indent=2) + "\n")


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
    try:
        description = json.loads((folder / CONFIG_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not JSON: {error}") from error
    model = build(description, source=str(folder / CONFIG_FILE))
    return load_state_dict(model, folder / WEIGHTS_FILE, dtype=dtype)


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
    name = model or recognise(arrays)
    config_kind = conversion_of(name).config
    arguments = _inferred(name, accept_older_keys(name, arrays), config)
    description: dict[str, Any] = {"model": name, "config": arguments}
    if name == "MaMMUT" and any(key.startswith("img_encoder.") for key in arrays):
        inside = {
            k: v for k, v in accept_older_keys(name, arrays).items() if k.startswith("img_encoder.vit.")
        }
        parts = {k.removeprefix("img_encoder.vit."): v for k, v in inside.items()}
        description["img_encoder"] = {"model": "SimpleViT", "config": _inferred("SimpleViT", parts, encoder)}
    assumed = [field.name for field in fields(config_kind) if field.name not in arguments]
    built = build(description, source=str(path))
    return load_state_dict(built, arrays, dtype=dtype), assumed


def _inferred(name: str, arrays: Mapping[str, np.ndarray], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments read off the shapes, overridden by the given ones; ValueError names those still missing."""
    given = dict(given or {})
    arguments = infer_config(name, arrays, given) | given
    missing = sorted(_required(conversion_of(name).config) - arguments.keys())
    if missing:
        raise ValueError(
            f"the shapes of the checkpoint do not tell these arguments of {name}: {', '.join(missing)}; "
            "pass them as config"
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
    shown = ", ".join(sorted(present)[:5])
    raise ValueError(
        f"the keys are those of none of the published packages; pass model=. They begin: {shown}"
    )


def describe(model: nnx.Module) -> dict[str, Any]:
    """The content of config.json."""
    name = type(model).__name__
    conversion_of(name)
    description: dict[str, Any] = {"model": name, "config": asdict(model.config)}
    if name == "MaMMUT" and model.img_encoder is not None:
        description["img_encoder"] = describe(model.img_encoder)
    return description


def build(description: Any, *, source: str) -> nnx.Module:
    """The model of a description, as shapes without arrays."""
    if not isinstance(description, Mapping) or not isinstance(description.get("config"), Mapping):
        raise ValueError(f"{source} must hold an object with 'model' and 'config'")
    try:
        kind, config_kind, _ = conversion_of(str(description.get("model")))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    known = {field.name for field in fields(config_kind)}
    unknown = sorted(description["config"].keys() - known)
    missing = sorted(_required(config_kind) - description["config"].keys())
    if unknown or missing:
        problems = [f"unknown: {field}" for field in unknown] + [f"missing: {field}" for field in missing]
        listed = "\n  ".join(problems)
        raise ValueError(f"{source}: the configuration does not fit {config_kind.__name__}\n  {listed}")
    config = config_kind(**description["config"])
    parts = {}
    if description.get("img_encoder") is not None:
        encoder = build(description["img_encoder"], source=f"{source}: img_encoder")
        parts["img_encoder"] = encoder
    return nnx.eval_shape(lambda: kind(config, **parts, rngs=nnx.Rngs(0)))


def _required(config_kind: type) -> set[str]:
    return {f.name for f in fields(config_kind) if f.default is MISSING and f.default_factory is MISSING}


def _card(description: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]) -> str:
    name = description["model"]
    dtypes = ", ".join(sorted({str(array.dtype) for array in state_dict.values()}))
    size = sum(array.size for array in state_dict.values())
    rows = "\n".join(f"| {key} | {value} |" for key, value in description["config"].items())
    return f"""---
library_name: jaxmodels
tags: [jax, flax, pytorch]
---
# {name}

{size:,} numbers ({dtypes}), written with jax {jax.__version__}. The keys are those of the published PyTorch package.

```python
import jaxmodels as jm

model = jm.from_pretrained("path/to/this/folder")
```

| argument | value |
| --- | --- |
{rows}
"""
