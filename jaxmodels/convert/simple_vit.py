"""Names and layouts of SimpleViT, theirs -> ours, in the order of vit-pytorch's state_dict."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmodels.convert.inference import infer_patches
from jaxmodels.convert.table import Entry, Twin, layer_norm, linear
from jaxmodels.models.simple_vit import SimpleViT, SimpleViTConfig


def table(model: SimpleViT) -> Iterator[Entry]:
    yield Twin("", "", "b c h w -> b h w c", "... -> ...")
    yield from layer_norm("to_patch_embedding.1", "patch_norm")
    yield from linear("to_patch_embedding.2", "patch_to_token")
    yield from layer_norm("to_patch_embedding.3", "token_norm")
    yield Twin("transformer", "transformer")
    yield from layer_norm("transformer.norm", "transformer.norm")
    for i in range(model.config.depth):
        theirs, ours = f"transformer.layers.{i}", f"transformer.blocks.{i}"
        yield Twin(theirs, ours)
        yield Twin(f"{theirs}.0", f"{ours}.attn")
        yield from layer_norm(f"{theirs}.0.norm", f"{ours}.attn.norm")
        yield from linear(f"{theirs}.0.to_qkv", f"{ours}.attn.to_qkv", bias=False)
        yield from linear(f"{theirs}.0.to_out", f"{ours}.attn.to_out", bias=False)
        yield Twin(f"{theirs}.1", f"{ours}.ff")
        yield from layer_norm(f"{theirs}.1.net.0", f"{ours}.ff.norm")
        yield from linear(f"{theirs}.1.net.1", f"{ours}.ff.up")
        yield from linear(f"{theirs}.1.net.3", f"{ours}.ff.down")
    yield from linear("linear_head", "linear_head")


def infer_config(state_dict: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that a checkpoint shows; `given` ones win and settle what is ambiguous.

    `image_size` and `patch_dropout` leave no trace.

    Raises:
      ValueError: the defaults do not fit patch area · channels, or heads · dim_head, and `given` is silent.
    """
    patch_to_token = state_dict["to_patch_embedding.2.weight"]
    dim, patch_dim = patch_to_token.shape
    inferred: dict[str, Any] = {"num_classes": state_dict["linear_head.weight"].shape[0], "dim": dim}
    inferred |= infer_patches(patch_dim, given, default_channels=SimpleViTConfig.channels)
    inferred["depth"] = sum(key.endswith(".0.to_out.weight") for key in state_dict)
    if inferred["depth"]:
        inferred |= _heads(state_dict["transformer.layers.0.0.to_out.weight"].shape[1], given)
        inferred["mlp_dim"] = state_dict["transformer.layers.0.1.net.1.weight"].shape[0]
    return inferred | dict(given)


def _heads(inner_dim: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """heads and dim_head, of which the checkpoint shows only the product."""
    if "heads" in given:
        return {"dim_head": inner_dim // given["heads"]}
    dim_head = given.get("dim_head", SimpleViTConfig.dim_head)
    if inner_dim % dim_head:
        raise ValueError(
            f"heads or dim_head must be given; the checkpoint has heads · dim_head = {inner_dim}, "
            f"which is not a multiple of dim_head={dim_head}"
        )
    return {"heads": inner_dim // dim_head}
