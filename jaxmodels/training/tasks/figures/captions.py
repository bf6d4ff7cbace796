"""Figures of captioning and retrieval. Shapes: n images, uint8, with 1 or 3 channels; q captions."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmodels import pages
from jaxmodels.training.tasks.figures.images import RIGHT, WRONG, lines, show


def caption_figure(
    images: UInt8[np.ndarray, "n height width c"],
    made: Sequence[str],
    right: Sequence[Sequence[str]],
    columns: int = 6,
) -> Figure:
    """Images below the caption that the model made, above a right one where that is wrong."""
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.65 * columns, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(images) :]:
        axes.axis("off")
    for axes, image, caption, answers in zip(grid.flat, images, made, right, strict=False):
        framed(axes, image, None)
        is_right = caption in answers
        axes.set_title(
            lines(caption or "–", 22),
            fontsize=8,
            color=RIGHT if is_right else WRONG,
            pad=3,
            parse_math=False,
        )
        if not is_right:
            axes.set_xlabel(
                lines(answers[0], 22), fontsize=8, color=pages.MUTED, labelpad=3, parse_math=False
            )
    return figure


def retrieval_figure(
    captions: Sequence[str],
    images: UInt8[np.ndarray, "q n height width c"],
    hits: Bool[np.ndarray, "q n"],
) -> Figure:
    """For each caption a line of images, the best first; the right ones are framed."""
    count = images.shape[1]
    figure = Figure(figsize=(2.1 + 1.05 * count, 1.08 * len(captions)), layout="constrained")
    grid = figure.subplots(
        len(captions), 1 + count, squeeze=False, gridspec_kw={"width_ratios": [2, *[1] * count]}
    )
    for line, caption, found, right in zip(grid, captions, images, hits, strict=True):
        line[0].axis("off")
        line[0].text(1, 0.5, lines(caption, 26), ha="right", va="center", fontsize=9, parse_math=False)
        for axes, image, hit in zip(line[1:], found, right, strict=True):
            framed(axes, image, RIGHT if hit else None)
    return figure


def framed(axes: Axes, image: UInt8[np.ndarray, "height width c"], color: str | None) -> None:
    """An image without ticks, in a frame of this colour or a faint one."""
    show(axes, image)
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=color or pages.LINE, linewidth=3 if color else 0.8)
