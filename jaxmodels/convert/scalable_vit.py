"""Names and layouts of ScalableViT, theirs -> ours, in the order of vit-pytorch's state_dict."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmodels.convert.table import Entry, Parameter, Twin, conv_1x1, conv_2d, layer_norm, linear
from jaxmodels.models.scalable_vit import ScalableViT, ScalableViTConfig, one_per_stage


CHANNELS_LAST = "b c h w -> b h w c"


def table(model: ScalableViT) -> Iterator[Entry]:
    config = model.config
    yield Twin("", "", CHANNELS_LAST, "... -> ...")
    yield from conv_2d("to_patches", "to_patches")
    last = len(config.depth) - 1
    for i, depth in enumerate(config.depth):
        yield Twin(f"layers.{i}.0", f"stages.{i}", CHANNELS_LAST)
        for j in range(depth):
            yield from _block(f"layers.{i}.0.layers.{j}", f"stages.{i}.blocks.{j}", first=j == 0)
        if i < last:
            yield from _channel_norm(f"layers.{i}.0.norm", f"stages.{i}.norm")
            yield from conv_2d(f"layers.{i}.1.conv", f"downsamples.{i}")
    yield from layer_norm("mlp_head.1", "head_norm")
    yield from linear("mlp_head.2", "head")


def _block(theirs: str, ours: str, *, first: bool) -> Iterator[Entry]:
    yield Twin(theirs, ours, CHANNELS_LAST)
    yield Twin(f"{theirs}.0", f"{ours}.ssa", CHANNELS_LAST)
    yield from _channel_norm(f"{theirs}.0.norm", f"{ours}.ssa.norm")
    yield from conv_1x1(f"{theirs}.0.to_q", f"{ours}.ssa.to_q", bias=False)
    yield from conv_2d(f"{theirs}.0.to_k", f"{ours}.ssa.to_k", bias=False)
    yield from conv_2d(f"{theirs}.0.to_v", f"{ours}.ssa.to_v", bias=False)
    yield from conv_1x1(f"{theirs}.0.to_out.0", f"{ours}.ssa.to_out")
    yield from _feed_forward(f"{theirs}.1", f"{ours}.ff1")
    if first:
        yield Twin(f"{theirs}.2", f"{ours}.peg", CHANNELS_LAST)
        yield Parameter(f"{theirs}.2.proj.weight", f"{ours}.peg.kernel", "c 1 h w -> h w c")
        yield Parameter(f"{theirs}.2.proj.bias", f"{ours}.peg.bias")
    yield from _feed_forward(f"{theirs}.3", f"{ours}.ff2")
    yield Twin(f"{theirs}.4", f"{ours}.iwsa", CHANNELS_LAST)
    yield from _channel_norm(f"{theirs}.4.norm", f"{ours}.iwsa.norm")
    yield from conv_2d(f"{theirs}.4.local_interactive_module", f"{ours}.iwsa.local_interactive_module")
    for name in ("to_q", "to_k", "to_v"):
        yield from conv_1x1(f"{theirs}.4.{name}", f"{ours}.iwsa.{name}", bias=False)
    yield from conv_1x1(f"{theirs}.4.to_out.0", f"{ours}.iwsa.to_out")


def _feed_forward(theirs: str, ours: str) -> Iterator[Entry]:
    yield Twin(theirs, ours, CHANNELS_LAST)
    yield from _channel_norm(f"{theirs}.net.0", f"{ours}.norm")
    yield from conv_1x1(f"{theirs}.net.1", f"{ours}.up")
    yield from conv_1x1(f"{theirs}.net.4", f"{ours}.down")


def _channel_norm(theirs: str, ours: str) -> Iterator[Entry]:
    """Their ChanLayerNorm is a layer norm over our last axis."""
    yield Twin(theirs, ours, CHANNELS_LAST)
    yield Parameter(f"{theirs}.g", f"{ours}.scale", "1 d 1 1 -> d")
    yield Parameter(f"{theirs}.b", f"{ours}.bias", "1 d 1 1 -> d")


def accept_older_keys(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Renames the keys of vit-pytorch ≤ 1.4.2, which wrapped every layer in a PreNorm."""
    block = r"(layers\.\d+\.0\.layers\.\d+\.)"
    renames = (
        (rf"{block}([04])\.fn\.(.*)", r"\1\2.\3"),
        (rf"{block}([13])\.norm\.(.*)", r"\1\2.net.0.\3"),
        (rf"{block}([13])\.fn\.net\.0\.(.*)", r"\1\2.net.1.\3"),
        (rf"{block}([13])\.fn\.net\.3\.(.*)", r"\1\2.net.4.\3"),
    )

    def today(key: str) -> str:
        for old, new in renames:
            if re.fullmatch(old, key):
                return re.sub(old, new, key)
        return key

    return {today(key): array for key, array in arrays.items()}


def infer_config(state_dict: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments that a checkpoint shows; `given` ones win and settle what is ambiguous.

    `window_size` and `dropout` leave no trace, and a stage without blocks shows only that it is there.

    Raises:
      ValueError: `given` is silent about heads and their widths, and the default ssa_dim_key does not fit.
    """
    state_dict = accept_older_keys(state_dict)
    dim, channels = state_dict["to_patches.weight"].shape[:2]
    num_classes, widest = state_dict["mlp_head.2.weight"].shape
    stages = int(math.log2(widest // dim)) + 1
    blocks = [re.match(r"layers\.(\d+)\.0\.layers\.\d+\.0\.to_q\.", key) for key in state_dict]
    stage_of_block = [int(match[1]) for match in blocks if match]
    depth = tuple(stage_of_block.count(i) for i in range(stages))
    inferred = {"num_classes": num_classes, "dim": dim, "depth": depth, "channels": channels}
    columns = [
        _first_block(state_dict, i, given, stages) if blocks else None for i, blocks in enumerate(depth)
    ]
    shown = next((column for column in columns if column), None)
    if shown:
        inferred["ff_expansion_factor"] = shown.pop("ff_expansion_factor")
        for name in shown:
            values = tuple((column or shown)[name] for column in columns)
            inferred[name] = values[0] if len(set(values)) == 1 else values
    return inferred | dict(given)


def _first_block(
    state_dict: Mapping[str, np.ndarray], stage: int, given: Mapping[str, Any], stages: int
) -> dict[str, int]:
    """What the first block of a stage shows; of heads and their widths it shows only products."""

    def shape(name: str) -> tuple[int, ...]:
        return state_dict[f"layers.{stage}.0.layers.0.{name}.weight"].shape

    widths = {
        "ssa_dim_key": shape("0.to_q")[0],
        "ssa_dim_value": shape("0.to_v")[0],
        "iwsa_dim_key": shape("4.to_q")[0],
        "iwsa_dim_value": shape("4.to_v")[0],
    }

    def told(name: str) -> int | None:
        return one_per_stage(name, given[name], stages)[stage] if name in given else None

    heads = told("heads")
    for name, width in widths.items():
        if heads is None and (dim_head := told(name)) is not None:
            heads = width // dim_head
    if heads is None:
        (default,) = one_per_stage("ssa_dim_key", ScalableViTConfig.ssa_dim_key, 1)
        heads = widths["ssa_dim_key"] // default
    if heads == 0 or any(width % heads for width in widths.values()):
        products = ", ".join(f"heads · {name} = {width}" for name, width in widths.items())
        raise ValueError(f"heads must be given; stage {stage} of the checkpoint has {products}")
    return {
        "heads": heads,
        **{name: width // heads for name, width in widths.items()},
        "reduction_factor": shape("0.to_k")[-1],
        "ff_expansion_factor": shape("1.net.1")[0] // shape("1.net.1")[1],
    }
