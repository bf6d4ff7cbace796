"""The README card of a hub folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmodels.data.preprocessing import Preprocessing


MARK = "<!-- Written by jaxmodels; without this line save_pretrained leaves the file alone. -->"


def may_replace_card(path: Path) -> bool:
    """Whether there is no README.md yet, or one that `model_card` wrote."""
    if not path.exists():
        return True
    return path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")


def model_card(
    description: Mapping[str, Any], state_dict: Mapping[str, np.ndarray], preprocessing: Preprocessing | None
) -> str:
    """Class, size, configuration and use of a model, in Markdown.

    Args:
      description: the content of config.json.
      state_dict: the weights.
      preprocessing: what makes the inputs, if it is saved as well.
    """
    name = description["model"]
    dtypes = ", ".join(sorted({str(array.dtype) for array in state_dict.values()}))
    size = sum(array.size for array in state_dict.values())
    arguments = dict(description["config"])
    for key, value in description.get("img_encoder", {}).get("config", {}).items():
        arguments[f"img_encoder: {key}"] = value
    rows = "\n".join(f"| {key} | {value} |" for key, value in arguments.items())
    return f"""---
library_name: jaxmodels
tags: [jax, flax, pytorch]
---
{MARK}

# {name}

{size:,} numbers ({dtypes}), written with jax {jax.__version__}. The keys are those of the published PyTorch package.

```python
import jaxmodels as jm

model = jm.from_pretrained("path/to/this/folder")
{_use(preprocessing)}```

| argument | value |
| --- | --- |
{rows}
"""


def _use(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return ""
    load = 'prepare = jm.load_preprocessing("path/to/this/folder")\n'
    if preprocessing.images is not None:
        return load + 'images = prepare.images(["image.png"])  # cropped, resized and scaled as in training\n'
    return load + 'tokens = prepare.text(["text"])  # the ids of training\n' if preprocessing.text else load
