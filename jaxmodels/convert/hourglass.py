"""Names and layouts of the Hourglass Transformer, theirs -> ours, in the package's order."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmodels.convert.table import Entry, Parameter, Twin, embedding, layer_norm, linear
from jaxmodels.models.hourglass import HourglassTransformer, HourglassTransformerLM, Transformer
from jaxmodels.models.hourglass_config import Depth, HourglassTransformerConfig


# The package's `AutoregressiveWrapper` holds the language model under this name.
WRAPPER = "net."


def table(model: HourglassTransformer | HourglassTransformerLM) -> Iterator[Entry]:
    yield Twin("", "")
    if isinstance(model, HourglassTransformer):
        yield from _hourglass("", model)
        return
    yield from embedding("token_emb", "token_emb")
    yield from embedding("pos_emb", "pos_emb")
    yield Twin("transformer", "transformer")
    yield from _any_transformer("transformer.", model.transformer)
    yield from linear("to_logits", "to_logits")


def _any_transformer(path: str, module: Transformer | HourglassTransformer) -> Iterator[Entry]:
    return _hourglass(path, module) if isinstance(module, HourglassTransformer) else _stack(path, module)


def _hourglass(path: str, model: HourglassTransformer) -> Iterator[Entry]:
    """The valley comes before what surrounds it. Down to the blocks, `path` is the same on both sides."""
    for name in ("downsample", "upsample"):
        yield Twin(f"{path}{name}", f"{path}{name}")
        if getattr(model, name).proj is not None:
            yield from linear(f"{path}{name}.proj", f"{path}{name}.proj")
    for name in (
        "valley_transformer",
        "attn_resampling_pre_valley",
        "attn_resampling_post_valley",
        "pre_transformer",
        "post_transformer",
    ):
        if getattr(model, name) is not None:
            yield Twin(f"{path}{name}", f"{path}{name}")
            yield from _any_transformer(f"{path}{name}.", getattr(model, name))
    if model.norm_out is not None:
        yield from layer_norm(f"{path}norm_out", f"{path}norm_out")


def _stack(path: str, model: Transformer) -> Iterator[Entry]:
    """The blocks of a Transformer; its `path` is the same on both sides."""
    single_key = path.endswith("attn_resampling_post_valley.")
    for i in range(len(model.blocks)):
        theirs, ours = f"{path}layers.{i}", f"{path}blocks.{i}"
        yield Twin(theirs, ours)
        yield from layer_norm(f"{theirs}.0.norm", f"{ours}.attn_norm")
        yield Twin(f"{theirs}.0.fn", f"{ours}.attn")
        if single_key:  # no query here, and one output row per bucket that PyTorch computes s times
            yield Parameter(f"{theirs}.0.fn.to_q.weight", f"{ours}.attn.to_q.kernel", "o i -> i o")
            yield from linear(f"{theirs}.0.fn.to_kv", f"{ours}.attn.to_kv", bias=False)
            yield Parameter(f"{theirs}.0.fn.to_out.weight", f"{ours}.attn.to_out.kernel", "o i -> i o")
            yield Parameter(f"{theirs}.0.fn.to_out.bias", f"{ours}.attn.to_out.bias")
        else:
            yield from linear(f"{theirs}.0.fn.to_q", f"{ours}.attn.to_q", bias=False)
            yield from linear(f"{theirs}.0.fn.to_kv", f"{ours}.attn.to_kv", bias=False)
            yield from linear(f"{theirs}.0.fn.to_out", f"{ours}.attn.to_out")
        yield from layer_norm(f"{theirs}.1.norm", f"{ours}.ff_norm")
        yield Twin(f"{theirs}.1.fn", f"{ours}.ff")
        yield from linear(f"{theirs}.1.fn.0", f"{ours}.ff.up")
        yield from linear(f"{theirs}.1.fn.3", f"{ours}.ff.down")
    if model.norm is not None:
        yield from layer_norm(f"{path}norm", f"{path}norm")


def accept_older_keys(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Takes off the prefix of a checkpoint of the package's `AutoregressiveWrapper`."""
    if arrays and all(key.startswith(WRAPPER) for key in arrays):
        return {key.removeprefix(WRAPPER): array for key, array in arrays.items()}
    return arrays


def infer_config(state_dict: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that a checkpoint shows; `given` ones win and settle what is ambiguous.

    `causal` leaves no trace, nor does `shorten_factor` in naive sampling. A valley without any parameter
    reads as 0.

    Raises:
      ValueError: heads · dim_head is not that of the defaults, and `given` has neither.
    """
    state_dict = accept_older_keys(state_dict)
    inferred: dict[str, Any] = {}
    root = ""
    if "token_emb.weight" in state_dict:
        root = "transformer."
        inferred["num_tokens"], inferred["dim"] = state_dict["token_emb.weight"].shape
        inferred["max_seq_len"] = state_dict["pos_emb.weight"].shape[0]
    else:
        inferred["norm_out"] = "norm_out.weight" in state_dict
        as_wide_as_dim = ("norm.weight", "norm_out.weight", "downsample.proj.weight")
        widths = [array.shape[0] for key, array in state_dict.items() if key.endswith(as_wide_as_dim)]
        inferred |= {"dim": widths[0]} if widths else {}

    if root and f"{root}norm.weight" in state_dict:
        inferred["depth"] = _count_blocks(state_dict, root)
    else:
        inferred["depth"] = _nested_depth(state_dict, root)
        inferred["attn_resampling"] = any(key.startswith(f"{root}attn_resampling_") for key in state_dict)
        factors = _linear_factors(state_dict, root)
        inferred["updown_sample_type"] = "linear" if factors else "naive"
        inferred |= {"shorten_factor": factors} if factors else {}

    inner = [array.shape[0] for key, array in state_dict.items() if key.endswith(".fn.to_q.weight")]
    if inner:
        inferred |= _heads(inner[0], given)
    return inferred | dict(given)


def _count_blocks(state_dict: Mapping[str, np.ndarray], path: str) -> int:
    prefix = f"{path}layers."
    return len({key[len(prefix) :].partition(".")[0] for key in state_dict if key.startswith(prefix)})


def _nested_depth(state_dict: Mapping[str, np.ndarray], path: str) -> Depth:
    valley = f"{path}valley_transformer."
    inside = {key[len(valley) :].partition(".")[0] for key in state_dict if key.startswith(valley)}
    is_stack = inside <= {"layers"}
    return (
        _count_blocks(state_dict, f"{path}pre_transformer."),
        _count_blocks(state_dict, valley) if is_stack else _nested_depth(state_dict, valley),
        _count_blocks(state_dict, f"{path}post_transformer."),
    )


def _linear_factors(state_dict: Mapping[str, np.ndarray], path: str) -> tuple[int, ...]:
    weight = state_dict.get(f"{path}downsample.proj.weight")
    if weight is None:
        return ()
    return (weight.shape[1] // weight.shape[0], *_linear_factors(state_dict, f"{path}valley_transformer."))


def _heads(inner_dim: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """heads and dim_head, of which the checkpoint shows only the product."""
    default = {"heads": HourglassTransformerConfig.heads, "dim_head": HourglassTransformerConfig.dim_head}
    for name, other in (("heads", "dim_head"), ("dim_head", "heads")):
        if name in given and inner_dim % given[name] == 0:
            return {other: inner_dim // given[name]}
    if default["heads"] * default["dim_head"] != inner_dim:
        raise ValueError(
            f"heads or dim_head must be given; the checkpoint has heads · dim_head = {inner_dim}, "
            f"which is not that of the defaults, {default['heads']} · {default['dim_head']}"
        )
    return default
