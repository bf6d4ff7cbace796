"""The peak signal-to-noise ratio of images."""

import numpy as np
from jaxtyping import Float


def psnr(images: Float[np.ndarray, "*b c"], clean: Float[np.ndarray, "*b c"]) -> float:
    """Peak signal-to-noise ratio in dB of images between -1 and 1; values outside are clipped first."""
    return float(-10 * np.log10(np.square((np.clip(images, -1, 1) - clean) / 2).mean()))
