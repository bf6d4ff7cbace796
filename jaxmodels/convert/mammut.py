"""Names and layouts of MaMMUT, theirs -> ours, in the order of MaMMUT-pytorch's state_dict.

The weights of a SimpleViT encoder are called `img_encoder.vit.*`, as inside vit-pytorch's Extractor, with
which the package is used. Loading also takes `img_encoder.*`, the names of a bare module.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from jaxmodels.convert import simple_vit
from jaxmodels.convert.table import Derived, Entry, Parameter, Tied, Twin, embedding, linear, prefixed
from jaxmodels.models.mammut import MaMMUT
from jaxmodels.models.simple_vit import SimpleViT
from jaxmodels.nn.positions import inverse_frequencies


def table(model: MaMMUT) -> Iterator[Entry]:
    """ValueError for an encoder with weights that is not a SimpleViT."""
    config = model.config
    yield Twin("", "")
    yield Parameter("text_cls_token", "text_cls_token")
    yield Parameter("img_queries", "img_queries")
    yield Parameter("temperature", "temperature")
    yield from embedding("token_emb", "token_emb")
    yield from _encoder(model.img_encoder)
    yield from _cross_attention("img_attn_pool", "img_attn_pool", model.img_attn_pool)
    yield from _norm("img_attn_pool_norm", "img_attn_pool_norm", config.dim)
    yield from _norm("text_cls_norm", "text_cls_norm", config.dim)
    for name in ("img_to_latents", "text_to_latents"):
        yield Twin(name, name)
        yield from linear(f"{name}.to_latents", f"{name}.to_latents", bias=False)
    for i, layer in enumerate(model.layers):
        yield Twin(f"layers.{i}", f"layers.{i}")
        yield from _block(f"layers.{i}.0.fn", f"layers.{i}.block", config.dim, config.dim_head)
        if layer.cross is not None:
            yield from _cross_attention(f"layers.{i}.1.fn", f"layers.{i}.cross", layer.cross)
    yield from _norm("to_logits.0", "norm", config.dim)
    yield Tied("to_logits.1.weight", "token_emb.weight")


def _encoder(encoder: Any) -> Iterator[Entry]:
    if isinstance(encoder, SimpleViT):
        yield from prefixed(simple_vit.table(encoder), "img_encoder.vit.", "img_encoder.")
    elif isinstance(encoder, nnx.Module) and nnx.to_flat_state(nnx.state(encoder, nnx.Param)):
        raise ValueError(
            f"img_encoder must be a SimpleViT, or have no weights, to be converted; "
            f"there is no weight table for an encoder of type {type(encoder).__name__}"
        )


def _block(theirs: str, ours: str, dim: int, dim_head: int) -> Iterator[Entry]:
    yield Twin(theirs, ours)
    yield from _norm(f"{theirs}.norm", f"{ours}.norm", dim)
    yield Twin(f"{theirs}.rotary_emb", f"{ours}.rotary_emb")
    yield Parameter(
        f"{theirs}.rotary_emb.inv_freq",
        f"{ours}.rotary_emb.inv_freq",
        expected=lambda: inverse_frequencies(dim_head),
    )
    yield from linear(f"{theirs}.fused_attn_ff_proj", f"{ours}.fused_attn_ff_proj", bias=False)
    yield from linear(f"{theirs}.attn_out", f"{ours}.attn_out", bias=False)
    yield from linear(f"{theirs}.ff_out.1", f"{ours}.ff_out", bias=False)


def _cross_attention(theirs: str, ours: str, module: Any) -> Iterator[Entry]:
    yield Twin(theirs, ours)
    yield from _norm(f"{theirs}.norm", f"{ours}.norm", module.to_q.in_features)
    if module.context_norm is not None:
        yield from _norm(f"{theirs}.context_norm", f"{ours}.context_norm", module.to_kv.in_features)
    for name in ("to_q", "to_kv", "to_out"):
        yield from linear(f"{theirs}.{name}", f"{ours}.{name}", bias=False)
    if module.ff is not None:
        yield Twin(f"{theirs}.ff", f"{ours}.ff")
        yield from linear(f"{theirs}.ff.0", f"{ours}.ff.up", bias=False)
        yield from linear(f"{theirs}.ff.2", f"{ours}.ff.down", bias=False)


def _norm(theirs: str, ours: str, dim: int) -> Iterator[Entry]:
    """A LayerNorm whose bias is a buffer of zeros there and absent here."""
    yield Twin(theirs, ours)
    yield Parameter(f"{theirs}.gamma", f"{ours}.scale")
    yield Derived(f"{theirs}.beta", (dim,), lambda: np.zeros(dim, np.float32), like=f"{theirs}.gamma")


def accept_older_keys(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Gives the weights of a bare SimpleViT the names that they have inside an Extractor."""
    if "img_encoder.linear_head.weight" not in arrays:
        return arrays
    bare, inside = "img_encoder.", "img_encoder.vit."
    return {
        inside + key.removeprefix(bare) if key.startswith(bare) else key: array
        for key, array in arrays.items()
    }


def infer_config(state_dict: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that a checkpoint shows; `given` ones win.

    The weights of the losses and `pad_id` leave no trace; nor does `ff_mult` if there are no layers.
    """
    num_tokens, dim = state_dict["token_emb.weight"].shape
    double_head, image_dim = state_dict["img_attn_pool.to_kv.weight"].shape
    inner_dim = state_dict["img_attn_pool.to_q.weight"].shape[0]
    depth = sum(key.endswith(".0.fn.attn_out.weight") for key in state_dict)
    cross = tuple(i for i in range(1, depth + 1) if f"layers.{i - 1}.1.fn.to_q.weight" in state_dict)
    inferred: dict[str, Any] = {
        "dim": dim,
        "num_tokens": num_tokens,
        "depth": depth,
        "dim_latents": state_dict["text_to_latents.to_latents.weight"].shape[0],
        "image_dim": image_dim,
        "num_img_queries": state_dict["img_queries"].shape[0] - 1,
        "dim_head": double_head // 2,
        "heads": inner_dim // (double_head // 2),
    }
    if depth:
        inferred["ff_mult"] = state_dict["layers.0.0.fn.ff_out.1.weight"].shape[1] // dim
    if "cross_attend_every" not in given and len(cross) < depth:
        inferred["cross_attend_layers"] = cross
    return inferred | dict(given)
