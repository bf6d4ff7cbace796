"""Names and layouts of GLOM, theirs -> ours, in the order of glom-pytorch's state_dict."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmodels.convert.table import Derived, Entry, Parameter, Twin, embedding, linear
from jaxmodels.models.glom import Glom, non_local_mask


def table(model: Glom) -> Iterator[Entry]:
    config = model.config
    yield Twin("", "", "b c h w -> b h w c", "... -> ...")
    yield Parameter("init_levels", "init_levels")
    yield from linear("image_to_tokens.1", "image_to_tokens")
    yield from embedding("pos_emb", "pos_emb")
    for name in ("bottom_up", "top_down"):
        yield Twin(name, name, "b n g d -> g b n d")
        yield from _grouped_conv(f"{name}.net.1", f"{name}.up")
        yield from _grouped_conv(f"{name}.net.3", f"{name}.down")
    yield Twin("attention", "attention", "b n l d -> l b n d")
    if config.local_consensus_radius > 0:
        side = config.image_size // config.patch_size
        yield Derived(
            "attention.non_local_mask",
            (1, side**2, side**2),
            lambda: non_local_mask(side, config.local_consensus_radius)[None],
        )


def _grouped_conv(theirs: str, ours: str) -> Iterator[Entry]:
    """A grouped Conv1d whose channels are (group, feature), group first."""
    yield Twin(theirs, ours, "b (g d) n -> g b n d")
    yield Parameter(f"{theirs}.weight", f"{ours}.kernel", "(g o) i 1 -> g i o")
    yield Parameter(f"{theirs}.bias", f"{ours}.bias", "(g o) -> g o")


def infer_config(state_dict: Mapping[str, np.ndarray], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments that a checkpoint's shapes tell; `consensus_self` leaves no trace in them."""
    levels, dim = state_dict["init_levels"].shape
    patch_size = math.isqrt(state_dict["image_to_tokens.1.weight"].shape[1] // 3)
    side = math.isqrt(state_dict["pos_emb.weight"].shape[0])
    found = {"dim": dim, "levels": levels, "image_size": side * patch_size, "patch_size": patch_size}
    found["local_consensus_radius"] = 0
    if "attention.non_local_mask" in state_dict:
        grid = np.indices((side, side)).reshape(2, -1)
        square = np.square(grid[:, :, None] - grid[:, None, :]).sum(axis=0)
        # Any radius up to the next distance gives the same mask; the largest visible distance is one of them.
        visible = float(square[~state_dict["attention.non_local_mask"][0]].max()) ** 0.5
        found["local_consensus_radius"] = visible or 0.5
    return found
