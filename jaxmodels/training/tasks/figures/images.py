"""Figures of what image models do. Shapes: n images, uint8, with 1 or 3 channels."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle

from jaxmodels import pages
from jaxmodels.data.preprocessing import unscale_pixels
from jaxmodels.training.tasks.psnr import psnr


RIGHT, WRONG = pages.GOOD, pages.BAD
OUTLINE = (230, 81, 0)
MOST_COUNTS, MOST_NAMES = 20, 40  # classes up to which a confusion matrix has room for counts, for names


def input_figure(rows: Mapping[str, Float[np.ndarray, "n height width c"]]) -> Figure:
    """What the model sees in training: images between -1 and 1 (columns), of one kind or several (rows)."""
    first = next(iter(rows.values()))
    figure = Figure(
        figsize=(1.15 * len(first) + 0.8 * (len(rows) > 1), 1.2 * len(rows)), layout="constrained"
    )
    grid = figure.subplots(len(rows), len(first), squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        if len(rows) > 1:
            _label_row(line[0], name)
        for axes, image in zip(line, images, strict=True):
            show(axes, unscale_pixels(image))
    return figure


def _label_row(axes: Axes, name: str) -> None:
    axes.text(-0.12, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=9)


def confusion_figure(counts: Int[np.ndarray, "classes classes"], names: Sequence[str]) -> Figure:
    """Counts by class (rows) and guess (columns), shaded by their share of the row."""
    classes = len(names)
    side = min(2.6 + 0.46 * classes, 10)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if classes <= MOST_COUNTS:
        _shade_cells(axes, shares)
    else:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("best guess")
    axes.set_ylabel("class")
    if classes <= MOST_NAMES:
        totals = [f"{name} ({count})" for name, count in zip(names, counts.sum(axis=1), strict=True)]
        across: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(classes), [*map(drawable, names)], fontsize=8, parse_math=False, **across)
        axes.set_yticks(range(classes), [*map(drawable, totals)], fontsize=8, parse_math=False)
    if classes <= MOST_COUNTS:
        for row, column in np.argwhere(counts):
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _shade_cells(axes: Axes, shares: Float[np.ndarray, "rows columns"]) -> None:
    """Cells in the page's colour, the darker the larger; the text on them stays readable in both themes."""
    for (row, column), share in np.ndenumerate(shares):
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, color=pages.JAX, alpha=0.5 * float(share), linewidth=0)
        )
    rows, columns = shares.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")


def prediction_figure(
    images: UInt8[np.ndarray, "n height width c"],
    labels: Int[np.ndarray, " n"],
    logits: Float[np.ndarray, "n classes"],
    names: Sequence[str],
    columns: int = 7,
) -> Figure:
    """Images with the best guess, its probability, and where it is wrong the class."""
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.45 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, label, row in zip(grid.flat, images, labels, probabilities, strict=False):
        guess = int(row.argmax())
        show(axes, image)
        right = guess == label
        title = lines(f"{names[guess]} {row[guess]:.0%}", 19)
        title += "" if right else "\n" + lines(f"is {names[label]}", 19)
        axes.set_title(title, fontsize=8, color=RIGHT if right else WRONG, pad=3, parse_math=False)
    return figure


def routing_figure(
    images: UInt8[np.ndarray, "n height width c"], masks: Mapping[str, Bool[np.ndarray, "n layers h w"]]
) -> Figure:
    """Images (rows) and the patches that every router selects (columns)."""
    layers = next(iter(masks.values())).shape[1]
    columns = 1 + len(masks) * layers
    figure = Figure(figsize=(1.3 * columns, 1.3 * len(images) + 0.4), layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, image in zip(grid, images, strict=True):
        show(row[0], image)
    for kind, (name, selected) in enumerate(masks.items()):
        for layer in range(layers):
            column = grid[:, 1 + kind * layers + layer]
            column[0].set_title(f"{name} {layer + 1}", fontsize=9)
            for axes, image, mask in zip(column, images, selected[:, layer], strict=True):
                show(axes, outlined(image, mask))
    return figure


def reconstruction_figure(rows: Mapping[str, Float[np.ndarray, "n height width c"]]) -> Figure:
    """Images between -1 and 1 (columns) in several versions (rows); the first version is the true one."""
    truth = next(iter(rows.values()))
    figure = Figure(figsize=(1.3 * len(truth) + 1.2, 1.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(truth), squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        _label_row(line[0], name)
        for axes, image, clean in zip(line, images, truth, strict=True):
            show(axes, unscale_pixels(image))
            if images is not truth:
                axes.set_title(f"{psnr(image, clean):.1f} dB", fontsize=8, pad=2)
    return figure


def island_figure(
    image: UInt8[np.ndarray, "height width c"], states: Float[np.ndarray, "t h w l d"]
) -> Figure:
    """The columns' states of every level (rows, the top one first) after every iteration (columns).

    Colours are the three principal components of a level's states over all iterations: equal colours are
    equal states. The number is the mean cosine between neighbouring columns.
    """
    steps, _, _, levels, _ = states.shape
    figure = Figure(figsize=(1.05 * (steps + 1), 1.2 * levels + 0.3), layout="constrained")
    grid = figure.subplots(levels, steps + 1, squeeze=False)
    for level, axes in enumerate(grid[::-1, 0], start=1):
        axes.axis("off")
        axes.set_title(f"level {level}", fontsize=8, pad=2)
    show(grid[-1, 0], image)
    for level in range(levels):
        row = grid[levels - 1 - level, 1:]
        colors = principal_colors(states[:, :, :, level])
        for step, axes in enumerate(row):
            show(axes, colors[step])
            heading = f"step {step}\n" if level == levels - 1 else ""
            cosine = neighbour_cosine(states[step, :, :, level])
            axes.set_title(f"{heading}{cosine:.2f}", fontsize=8, pad=2)
    return figure


def principal_colors(states: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b 3"]:
    """The first three principal components, each stretched to [0, 1], as red, green and blue."""
    flat = states.reshape(-1, states.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    components = flat @ directions[:3].T
    low, high = np.percentile(components, (1, 99), axis=0)
    stretched = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.zeros((len(flat), 3))
    colors[:, : stretched.shape[1]] = stretched
    return colors.reshape(*states.shape[:-1], 3)


def neighbour_cosine(states: Float[np.ndarray, "h w d"]) -> float:
    """Mean cosine between the states of columns that lie side by side or one above the other."""
    unit = states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), 1e-12)
    beside = (unit[:, 1:] * unit[:, :-1]).sum(axis=-1)
    below = (unit[1:] * unit[:-1]).sum(axis=-1)
    return float(np.concatenate([beside.ravel(), below.ravel()]).mean())


def outlined(
    image: UInt8[np.ndarray, "height width c"], mask: Bool[np.ndarray, "h w"], scale: int = 4
) -> UInt8[np.ndarray, "x y 3"]:
    """The image, enlarged, with the patches outside of the mask faded and those inside outlined."""
    p1, p2 = (scale * side // patches for side, patches in zip(image.shape, mask.shape, strict=False))
    pixels = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(scale, axis=0).repeat(scale, axis=1)
    inside = np.kron(mask, np.ones((p1, p2), bool))
    faded = np.where(inside[..., None], pixels, 205 + 0.15 * (pixels.astype(float) - 128))
    padded = np.pad(inside, 1)
    interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.where((inside & ~interior)[..., None], OUTLINE, faded).astype(np.uint8)


def drawable(text: str) -> str:
    """The text with a dot for every character that the font lacks; matplotlib warns of those, or fails."""
    font = get_font(findfont(FontProperties()))
    # It also warns of the sign for undecodable bytes, even where the font has it.
    return "".join(c if c == "\n" or (font.get_char_index(ord(c)) and c != "\ufffd") else "·" for c in text)


def lines(text: str, width: int) -> str:
    """The text in at most three lines of at most this many characters."""
    return "\n".join(textwrap.wrap(drawable(text), width, max_lines=3, placeholder=" …"))


def show(axes: Axes, image: np.ndarray) -> None:
    """An image without axes; one channel is drawn in grey."""
    axes.imshow(np.broadcast_to(image, (*image.shape[:2], 3)), interpolation="nearest")
    axes.axis("off")
