"""Published models, a small one and its bits, for the tests of PyTorch's files."""

import io
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from flax import nnx

import jaxmodels as jm
from parity_tests.cases import CASES
from parity_tests.cases.case import Case
from torch_reference.glom import Glom


ROWS = {
    case.name: case
    for case in CASES
    if case.name
    in {
        "glom/local_consensus_radius",
        "hourglass/nested depth",
        "hourglass/embeddings, all options",
        "colt5/base",
        "mammut/cross_attend_layers",
        "mammut/SimpleViT as encoder",
        "scalable_vit/base",
        "simple_vit/base",
    }
}


def published(case: Case, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The package's model off its initial values, so that no two entries are alike by chance."""
    assert case.published is not None
    torch.manual_seed(0)
    model = case.published()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def small() -> OrderedDict[str, torch.Tensor]:
    torch.manual_seed(0)
    return Glom(dim=4, levels=2, image_size=4, patch_size=2).state_dict()


def small_model() -> jm.Glom:
    config = jm.GlomConfig(dim=4, levels=2, image_size=4, patch_size=2)
    return nnx.eval_shape(lambda: jm.Glom(config, rngs=nnx.Rngs(0)))


def bits(state_dict: Any) -> list[tuple]:
    """Keys in order with dtype, shape and bytes; of arrays and of tensors."""
    return [
        (key, str(value.dtype).removeprefix("torch."), tuple(value.shape), as_bytes(value))
        for key, value in state_dict.items()
    ]


def as_bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.asarray(value).tobytes()


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()
