"""Names and layouts of the routed ViT, theirs -> ours, in the order of CoLT5-attention's state_dict."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmodels.convert.inference import infer_patches
from jaxmodels.convert.table import Entry, Parameter, Twin, layer_norm, linear
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig


def table(model: ConditionalRoutedViT) -> Iterator[Entry]:
    yield Twin("", "", "b c h w -> b h w c", "... -> ...")
    yield from layer_norm("to_patch_embedding.1", "patch_norm")
    yield from linear("to_patch_embedding.2", "patch_to_token")
    yield from layer_norm("to_patch_embedding.3", "token_norm")
    yield Twin("transformer", "transformer")
    for i in range(model.config.depth):
        theirs, ours = f"transformer.layers.{i}", f"transformer.blocks.{i}"
        yield Twin(theirs, ours)
        yield from _attention(f"{theirs}.0", f"{ours}.attn")
        yield Twin(f"{theirs}.1", f"{ours}.ff")
        yield from _router(f"{theirs}.1.router", f"{ours}.ff.router")
        yield from _feed_forward(f"{theirs}.1.light_ff", f"{ours}.ff.light_ff")
        yield from _feed_forward(f"{theirs}.1.heavy_ff", f"{ours}.ff.heavy_ff")
    yield from layer_norm("linear_head.1", "head_norm")
    yield from linear("linear_head.2", "linear_head")


def _attention(theirs: str, ours: str) -> Iterator[Entry]:
    yield Twin(theirs, ours)
    yield Parameter(f"{theirs}.null_q_token", f"{ours}.null_q_token")
    yield Twin(f"{theirs}.light_attn", f"{ours}.light_attn")
    yield from _rms_norm(f"{theirs}.light_attn.norm", f"{ours}.light_attn.norm")
    yield from linear(f"{theirs}.light_attn.to_qkv", f"{ours}.light_attn.to_qkv", bias=False)
    yield from linear(f"{theirs}.light_attn.to_out", f"{ours}.light_attn.to_out", bias=False)
    yield from _router(f"{theirs}.q_router", f"{ours}.q_router")
    yield from _router(f"{theirs}.kv_router", f"{ours}.kv_router")
    theirs, ours = f"{theirs}.heavy_attn", f"{ours}.heavy_attn"
    yield Twin(theirs, ours)
    yield Parameter(f"{theirs}.null_kv", f"{ours}.null_kv")
    yield from _rms_norm(f"{theirs}.norm", f"{ours}.norm")
    yield from linear(f"{theirs}.to_q", f"{ours}.to_q", bias=False)
    yield Parameter(f"{theirs}.to_kv.weight", f"{ours}.to_kv", "(h e) d -> d h e")
    yield from linear(f"{theirs}.to_out", f"{ours}.to_out", bias=False)


def _feed_forward(theirs: str, ours: str) -> Iterator[Entry]:
    yield Twin(theirs, ours)
    yield from _rms_norm(f"{theirs}.0", f"{ours}.norm")
    yield from linear(f"{theirs}.1", f"{ours}.up")
    yield from linear(f"{theirs}.3", f"{ours}.down")


def _router(theirs: str, ours: str) -> Iterator[Entry]:
    yield Twin(theirs, ours)
    yield Parameter(f"{theirs}.routing_token", f"{ours}.routing_token")


def _rms_norm(theirs: str, ours: str) -> Iterator[Entry]:
    yield Twin(theirs, ours)
    yield Parameter(f"{theirs}.gamma", f"{ours}.gamma")


def infer_config(state_dict: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that a checkpoint shows; `given` ones win and settle what is ambiguous.

    `image_size`, the window size, the numbers of heavy tokens and the options of the routers leave no trace.

    Raises:
      ValueError: patch area · channels, or light heads · dim_head, can be split in several ways and `given`
        is silent.
    """
    dim, patch_dim = state_dict["to_patch_embedding.2.weight"].shape
    inferred: dict[str, Any] = {"num_classes": state_dict["linear_head.2.weight"].shape[0], "dim": dim}
    inferred |= infer_patches(patch_dim, given, default_channels=ConditionalRoutedViTConfig.channels)
    inferred["depth"] = sum(key.endswith(".null_q_token") for key in state_dict)
    if inferred["depth"]:
        attn, ff = "transformer.layers.0.0", "transformer.layers.0.1"
        _, heads, dim_head = state_dict[f"{attn}.heavy_attn.null_kv"].shape
        inferred |= {"attn_heavy_heads": heads, "attn_heavy_dim_head": dim_head}
        inferred |= _light_heads(state_dict[f"{attn}.light_attn.to_out.weight"].shape[1], given)
        inferred["attn_num_routed_kv"] = state_dict[f"{attn}.kv_router.routing_token"].shape[0]
        for branch in ("light", "heavy"):
            hidden_dim = state_dict[f"{ff}.{branch}_ff.1.weight"].shape[0]
            inferred[f"ff_{branch}_mult"] = _multiplier(hidden_dim, dim)
    return inferred | dict(given)


def _light_heads(inner_dim: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Heads of the light attention and their width, of which the checkpoint shows only the product."""
    for name, other in (
        ("attn_light_heads", "attn_light_dim_head"),
        ("attn_light_dim_head", "attn_light_heads"),
    ):
        if name in given:
            return {other: inner_dim // given[name]}
    raise ValueError(
        "attn_light_heads or attn_light_dim_head must be given; "
        f"the checkpoint has attn_light_heads · attn_light_dim_head = {inner_dim}"
    )


def _multiplier(hidden_dim: int, dim: int) -> float:
    """A multiplier with int(dim · multiplier) = hidden_dim, whole if possible."""
    if hidden_dim % dim == 0:
        return hidden_dim // dim
    multiplier = hidden_dim / dim
    return multiplier if int(dim * multiplier) == hidden_dim else (hidden_dim + 0.5) / dim
