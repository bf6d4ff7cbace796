"""How close an image is to another, in dB."""

import numpy as np
from jaxtyping import Float


def psnr(images: Float[np.ndarray, "*b c"], clean: Float[np.ndarray, "*b c"]) -> float:
    """Peak signal-to-noise ratio in dB of images between -1 and 1; what lies outside is cut off first."""
    return float(-10 * np.log10(np.square((np.clip(images, -1, 1) - clean) / 2).mean()))
