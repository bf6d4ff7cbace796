"""What the weights of every image model with patches show of its configuration."""

import math
from collections.abc import Mapping
from typing import Any


def infer_patches(patch_dim: int, given: Mapping[str, Any], *, default_channels: int) -> dict[str, int]:
    """`channels`, and `patch_size` unless it is given, from patch height · patch width · channels.

    Raises:
      ValueError: no square patch has that many numbers, and `given` has no `patch_size`.
    """
    if "patch_size" in given:
        side = given["patch_size"]
        area = math.prod(side) if isinstance(side, tuple | list) else side**2
        return {"channels": patch_dim // area}
    channels = given.get("channels", default_channels)
    side = math.isqrt(patch_dim // channels)
    if channels * side**2 != patch_dim:
        raise ValueError(
            f"patch_size and channels must be given when the patches are not square; the checkpoint has "
            f"patch height · patch width · channels = {patch_dim}, channels={channels}"
        )
    return {"patch_size": side, "channels": channels}
