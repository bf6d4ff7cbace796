"""Figures of captioning and retrieval. Shapes: n pictures, uint8, with 1 or 3 channels."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8
from matplotlib.figure import Figure

from jaxmodels.training.figures import RIGHT, WRONG, show


def caption_figure(
    images: UInt8[np.ndarray, "n height width c"],
    made: Sequence[str],
    right: Sequence[Sequence[str]],
    columns: int = 5,
) -> Figure:
    """Pictures with the caption that the model made and, where it is wrong, the right one."""
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.9 * columns, 1.95 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, caption, answers in zip(grid.flat, images, made, right, strict=False):
        show(axes, image)
        is_right = caption in answers
        axes.text(
            0.5, -0.06, _wrapped(caption or "(nothing)"), transform=axes.transAxes,
            ha="center", va="top", fontsize=8.5, color=RIGHT if is_right else WRONG,
        )  # fmt: skip
        if not is_right:
            lines = _wrapped(caption or "(nothing)").count("\n") + 1
            axes.text(
                0.5, -0.09 - 0.115 * lines, _wrapped(answers[0]), transform=axes.transAxes,
                ha="center", va="top", fontsize=8.5, color="#555",
            )  # fmt: skip
    return figure
