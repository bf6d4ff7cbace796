"""Weights in several files, as Hugging Face's libraries write large ones."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxmodels.convert.files import write_state_dict


def write_shards(folder: Path, state_dict: Mapping[str, np.ndarray], ending: str = ".safetensors") -> Path:
    """Two files and their index, whose path is returned."""
    stem = {".safetensors": "model", ".bin": "pytorch_model"}[ending]
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number in (0, 1):
        shard = dict(list(state_dict.items())[number::2])
        name = f"{stem}-0000{number + 1}-of-00002{ending}"
        write_state_dict(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    index = folder / f"{stem}{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index
