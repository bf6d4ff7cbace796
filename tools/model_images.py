"""Makes the images of what the models compute on real data: docs/images, and the sample in docs/models/hourglass.md.

    python tools/model_images.py

Each model is trained for one to five minutes on two CPU cores; the runs are kept under out/model_images.
"""

import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxmodels as jm
from jaxmodels.data.datasets import LabelledImages
from jaxmodels.data.preprocessing import scale_pixels
from jaxmodels.data.tokens import BOS_ID, decode
from jaxmodels.training.tasks.figures.images import principal_colors


ROOT = Path(__file__).parents[1]
RUNS = ROOT / "out" / "model_images"
IMAGES = ROOT / "docs" / "images"
STEPS = {
    "glom-emoji": 400,
    "hourglass-sotu": 3000,
    "colt5-vit-emoji": 400,
    "mammut-emoji": 1200,
    "scalable-vit-emoji": 500,
}
TEXT = "#808080"  # can be read on a light and on a dark page
SHOWN = (3, 120, 700, 1010, 1300)  # test images, drawn in a style that the models have not seen


def trained(preset: str) -> Any:
    """The model of a short run, trained now unless it is there."""
    folder = RUNS / preset / "model"
    if not folder.exists():
        words = ["train", preset, "--workdir", str(RUNS / preset), "--steps", str(STEPS[preset]), "--resume"]
        subprocess.run([sys.executable, "-m", "jaxmodels", *words], check=True, cwd=ROOT)
    return jm.from_pretrained(folder)


def test_images() -> LabelledImages:
    """Emoji in a style that no run was trained on, 32 pixels a side."""
    return jm.data.emoji_splits("across-styles", size=32).test


def glom() -> None:
    """The states of all columns, in colours: equal colours are equal states."""
    model = trained("glom-emoji")
    images = test_images().images[list(SHOWN)]
    levels, side = model.config.levels, images.shape[1] // model.config.patch_size
    states = np.asarray(model(scale_pixels(images), iters=levels + 1))  # b n l d
    figure, grid = plain_figure(len(images), levels + 1, size=0.95)
    for number, image in enumerate(images):
        draw(grid[number, 0], image)
    for level in range(levels):
        colors = principal_colors(states[:, :, level]).reshape(len(images), side, side, 3)
        for number in range(len(images)):
            draw(grid[number, level + 1], colors[number])
    for column, title in enumerate(("image", *(f"level {level + 1}" for level in range(levels)))):
        grid[0, column].set_title(title, fontsize=9, color=TEXT)
    save(figure, "glom-islands.png")


def colt5() -> None:
    """The patches that the feed-forward router of every layer sends to the heavy branch."""
    model = trained("colt5-vit-emoji")
    images = test_images().images[list(SHOWN)]
    depth, side = model.config.depth, images.shape[1] // model.config.patch_size
    routed = model.routing(scale_pixels(images))[2::3]  # queries, context, feed-forward of every layer
    figure, grid = plain_figure(len(images), depth + 1, size=0.95)
    for number, image in enumerate(images):
        draw(grid[number, 0], image)
        for layer, router in enumerate(routed):
            mask = np.zeros(side * side)
            mask[np.asarray(router.indices)[number, 0]] = 1
            routed_pixels = np.kron(mask.reshape(side, side), np.ones((model.config.patch_size,) * 2))[
                ..., None
            ]
            faded = np.where(routed_pixels == 1, image, 0.2 * image + 0.8 * 140).astype(np.uint8)
            draw(grid[number, layer + 1], faded)
    for column, title in enumerate(("image", *(f"layer {layer + 1}" for layer in range(depth)))):
        grid[0, column].set_title(title, fontsize=9, color=TEXT)
    save(figure, "colt5-routing.png")


def mammut() -> None:
    """Captions that the model writes."""
    model = trained("mammut-emoji")
    test = test_images()
    shown = np.linspace(20, len(test) - 20, 12).astype(int)
    captions = written(model, scale_pixels(test.images[shown]))
    figure, grid = plain_figure(4, 3, size=1.55, height=1.7)
    for axes, image, caption in zip(grid.flat, test.images[shown], captions, strict=True):
        draw(axes, image)
        axes.set_title(shortened(caption), fontsize=8, color=TEXT, parse_math=False)
    save(figure, "mammut-captions.png")


def written(model: Any, images: np.ndarray, length: int = 40) -> list[str]:
    """Captions of the images; every byte is the likeliest one."""
    _, context = model.embed_image(images)
    logits = jax.jit(lambda model, text, context: model.decode(text, context))
    text = np.zeros((len(images), length), np.int32)
    text[:, 0] = BOS_ID
    for position in range(1, length):
        text[:, position] = np.asarray(logits(model, text, context))[:, position - 1].argmax(axis=-1)
    return [decode(row).partition("\n")[0] for row in text]


def shortened(text: str, width: int = 20) -> str:
    """The text in at most two lines."""
    words, lines = text.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:2])


def scalable_vit() -> None:
    """The confusion matrix on a style of drawing that was not trained on."""
    model = trained("scalable-vit-emoji")
    test = test_images()
    names = jm.data.emoji("fluent").group_names
    logits = jax.jit(lambda model, images: model(images))
    parts = np.array_split(np.arange(len(test)), 16)
    guesses = np.concatenate(
        [np.asarray(logits(model, scale_pixels(test.images[p]))).argmax(axis=-1) for p in parts]
    )
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (test.labels, guesses), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(
        range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8, color=TEXT
    )
    axes.set_yticks(range(len(names)), names, fontsize=8, color=TEXT)
    axes.set_xlabel("the model's guess", color=TEXT, fontsize=9)
    axes.set_ylabel("the right group", color=TEXT, fontsize=9)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, "scalable_vit-confusion.png")


def hourglass() -> None:
    """How much each byte of a test sentence surprises the model, and a continuation that it writes."""
    model = trained("hourglass-sotu")
    corpus = jm.data.state_of_the_union("test").text
    start = corpus.index(b"Tonight")
    ids = np.frombuffer(corpus[start : start + model.config.max_seq_len], np.uint8).astype(np.int32)[None]
    losses = -jax.nn.log_softmax(model(ids[:, :-1]))[0, jnp.arange(ids.shape[1] - 1), ids[0, 1:]] / np.log(2)
    text = ids[0].astype(np.uint8).tobytes().decode("ascii", "replace")
    svg = surprise_svg(text, [0.0, *np.asarray(losses)], model.config.shorten_factor)
    (IMAGES / "hourglass-surprise.svg").write_text(svg, encoding="utf-8")

    from jaxmodels.generation import generate

    prompt = b"The American people "
    drawn = generate(
        model,
        jnp.asarray(np.frombuffer(prompt, np.uint8)[None], jnp.int32),
        280,
        temperature=0.7,
        rngs=nnx.Rngs(sample=1),
    )
    sample = (prompt + np.asarray(drawn)[0].astype(np.uint8).tobytes()).decode("ascii", "replace")
    write_sample(sample)


def surprise_svg(text: str, bits: list[float], bucket: int, columns: int = 33) -> str:
    """One cell per byte, the redder the more bits; a group of cells is a bucket that is shortened to one.

    The shift makes the first byte a bucket of its own.
    """
    width, height, gap = 12, 22, 2
    parts = []
    for number, (character, value) in enumerate(zip(text, bits, strict=True)):
        row, column = divmod(number, columns)
        x, y = column * width + (column + bucket - 1) // bucket * gap + 4, row * (height + 4) + 4
        strength = min(value / 8, 1)
        red, green, blue = (
            round(full + strength * (to - full)) for full, to in ((236, 235), (239, 110), (243, 60))
        )
        shown = {" ": "·", "\n": "↵"}.get(character, character)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="rgb({red},{green},{blue})"/>'
            f'<text x="{x + width / 2}" y="{y + 15}">{escape(shown)}</text>'
        )
    total = columns * width + (columns + bucket - 1) // bucket * gap + 8
    lowest = -(-len(text) // columns) * (height + 4) + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {lowest}" width="{total}" height="{lowest}" '
        'role="img">\n<title>Bits per byte of a test sentence</title>\n<style>text { font: 13px ui-monospace, '
        "monospace; text-anchor: middle; fill: #1f2328; }</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def write_sample(sample: str) -> None:
    """Writes the sample into the page, between its markers."""
    page = ROOT / "docs" / "models" / "hourglass.md"
    begin, end = "<!-- sample: begin -->\n", "<!-- sample: end -->\n"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    quoted = "\n".join(f"> {line}" if line else ">" for line in sample.strip().splitlines())
    page.write_text(before + begin + quoted + "\n" + end + after, encoding="utf-8")


def plain_figure(rows: int, columns: int, *, size: float, height: float | None = None) -> tuple[Figure, Any]:
    """A transparent figure and its grid of axes."""
    figure = Figure(figsize=(size * columns, (height or size) * rows + 0.2))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure.patch.set_alpha(0)
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.axis("off")


def save(figure: Figure, name: str) -> None:
    """Writes the figure with few colours, so that the file stays below 100 kB."""
    from PIL import Image

    path = IMAGES / name
    figure.savefig(path, dpi=110, transparent=True)
    with Image.open(path) as image:
        small = image.quantize(colors=255, method=Image.Quantize.FASTOCTREE)
    small.save(path, optimize=True)


def main() -> None:
    for make in (glom, colt5, mammut, scalable_vit, hourglass):
        print(make.__name__, flush=True)
        make()


if __name__ == "__main__":
    main()
