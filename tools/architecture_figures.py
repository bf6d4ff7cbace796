"""Draws the architectures for the documentation: one SVG per model in docs/images.

    python tools/architecture_figures.py

The figures are narrow, so that they can be read on a phone, and have no background, so that they fit a light and a
dark page. A test draws them again and compares.
"""

from html import escape
from pathlib import Path


FOLDER = Path(__file__).parents[1] / "docs" / "images"
WIDTH = 460
MIDDLE = WIDTH / 2
LINE = 16  # height of a line of text
STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle; fill: #1f2328; }
.note { font-size: 12px; fill: #57606a; }
.left { text-anchor: start; }
rect { stroke: #57606a; }
path { stroke: #57606a; fill: none; }
.data { fill: #eceff3; } .layer { fill: #cfe2ff; } .attention { fill: #ffe0b3; } .routed { fill: #d3efd3; }
.frame { fill: none; stroke-dasharray: 5 4; }
@media (prefers-color-scheme: dark) {
  .note { fill: #adb5bf; }
  rect, path { stroke: #8b949e; }
}
"""


class Drawing:
    """Boxes, arrows and notes, collected into one SVG."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.height = 0.0
        self.parts: list[str] = []

    def box(self, kind: str, text: str, *, x: float, y: float, width: float) -> float:
        """A box centred at `x` whose upper edge is `y`; returns its lower edge. Lines are parted by newlines."""
        lines = text.split("\n")
        height = LINE * len(lines) + 12
        self.parts.append(
            f'<rect class="{kind}" x="{x - width / 2:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>'
        )
        for number, line in enumerate(lines):
            self._text(line, x, y + 18 + LINE * number, "")
        return self._lowest(y + height)

    def frame(self, note: str, *, x: float, y: float, width: float, height: float) -> None:
        """A dashed frame with a note in its lower left corner."""
        self.parts.append(
            f'<rect class="frame" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>'
        )
        self._text(note, x + 10, y + height - 8, "note left")
        self._lowest(y + height)

    def note(self, text: str, *, x: float, y: float, left: bool = False) -> None:
        """A line of text without a box; centred at `x` unless `left`."""
        self._text(text, x, y, "note left" if left else "note")
        self._lowest(y)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points with a head at the last one."""
        line = " L".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path d="M{line}" marker-end="url(#head)"/>')

    def down(self, x: float, y: float, length: float = 18) -> float:
        """A short arrow downwards; returns where it ends."""
        self.arrow((x, y), (x, y + length))
        return y + length

    def svg(self) -> str:
        """The SVG file as text."""
        height = self.height + 8
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" role="img">\n<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n'
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M1 1 L7 4 L1 7"/></marker></defs>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )

    def _text(self, text: str, x: float, y: float, style: str) -> None:
        classes = f' class="{style}"' if style else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{classes}>{escape(text)}</text>')

    def _lowest(self, y: float) -> float:
        self.height = max(self.height, y)
        return y


def glom() -> Drawing:
    """One step of GLOM."""
    d = Drawing("GLOM: four terms are averaged in every step")
    y = d.box("data", "images (b, height, width, 3)", x=MIDDLE, y=6, width=230)
    y = d.box("layer", "patches, Linear", x=MIDDLE, y=d.down(MIDDLE, y), width=230)
    y = d.box("data", "tokens (b, n, dim)", x=MIDDLE, y=d.down(MIDDLE, y), width=230)
    top = y + 30
    d.arrow((MIDDLE - 90, y), (MIDDLE - 90, top + 106))
    d.note("enter below level 1", x=MIDDLE - 82, y=y + 18, left=True)
    y = d.box("data", "state (b, n, levels, dim)\nlevel l at step t", x=MIDDLE + 50, y=top, width=230)
    centers = (55, 171, 287, 403)
    texts = (
        ("data", "the level's\nown state"),
        ("layer", "bottom-up MLP\nof level l − 1"),
        ("layer", "top-down MLP\nof level l + 1\n+ position"),
        ("attention", "consensus:\nattention over\nall n columns"),
    )
    row, end = y + 62, 0.0
    for x, (kind, text) in zip(centers, texts, strict=True):
        if x == 171:
            d.arrow((x + 30, y), (x + 12, row))
        else:
            d.arrow((min(max(x, MIDDLE - 60), MIDDLE + 160), y), (x, row))
        end = max(end, d.box(kind, text, x=x, y=row, width=108))
    mean = end + 40
    for x, (_, text) in zip(centers, texts, strict=True):
        d.arrow((x, row + LINE * (text.count("\n") + 1) + 12), (MIDDLE + (x - MIDDLE) * 0.4, mean))
    y = d.box("layer", "mean of the four (top level: of three)", x=MIDDLE, y=mean, width=260)
    y = d.box("data", "state (b, n, levels, dim) at step t + 1", x=MIDDLE, y=d.down(MIDDLE, y), width=260)
    d.note("repeated iters times, always with the same weights", x=MIDDLE, y=y + 22)
    return d


def hourglass() -> Drawing:
    """The Hourglass Transformer; the width of a box is the length of the sequence."""
    d = Drawing("Hourglass Transformer: most layers run on a shortened sequence")
    wide, narrow = 380, 190
    y = d.box("data", "tokens (b, n)", x=MIDDLE, y=6, width=wide)
    y = d.box("layer", "token and position embeddings", x=MIDDLE, y=d.down(MIDDLE, y), width=wide)
    y = d.box(
        "attention", "depth[0] layers: attention, feed-forward", x=MIDDLE, y=d.down(MIDDLE, y), width=wide
    )
    d.note("(b, n, dim)", x=MIDDLE + 8, y=y + 21, left=True)
    residual = y + 6
    y = d.box("layer", "shift right by s − 1, if causal", x=MIDDLE, y=d.down(MIDDLE, y, 28), width=wide)
    y = d.box("layer", "shorten by s", x=MIDDLE, y=d.down(MIDDLE, y), width=narrow)
    y = d.box(
        "attention", "each bucket's mean\nattends to its bucket", x=MIDDLE, y=d.down(MIDDLE, y), width=narrow
    )
    d.note("(b, n / s, dim)", x=MIDDLE + 8, y=y + 15, left=True)
    y = d.box(
        "attention", "depth[1] layers, or\nanother hourglass", x=MIDDLE, y=d.down(MIDDLE, y, 24), width=narrow
    )
    y = d.box("layer", "lengthen by s", x=MIDDLE, y=d.down(MIDDLE, y), width=narrow)
    y = d.box("layer", "add what was there before the shift", x=MIDDLE, y=d.down(MIDDLE, y), width=wide)
    edge = MIDDLE + wide / 2
    d.arrow((MIDDLE, residual), (edge + 22, residual), (edge + 22, y - 14), (edge, y - 14))
    y = d.box("attention", "tokens attend to their bucket", x=MIDDLE, y=d.down(MIDDLE, y), width=wide)
    y = d.box("attention", "depth[2] layers", x=MIDDLE, y=d.down(MIDDLE, y), width=wide)
    y = d.box("layer", "LayerNorm, Linear", x=MIDDLE, y=d.down(MIDDLE, y), width=wide)
    d.box("data", "logits (b, n, num_tokens)", x=MIDDLE, y=d.down(MIDDLE, y), width=wide)
    return d


def colt5() -> Drawing:
    """One block of the routed ViT between its stem and its head."""
    d = Drawing("CoLT5 ViT: all tokens take the light branch, routed ones the heavy branch as well")
    y = d.box("data", "images (b, height, width, c)", x=MIDDLE, y=6, width=250)
    y = d.box(
        "layer",
        "patches, LayerNorm, Linear, LayerNorm\n+ sin-cos position",
        x=MIDDLE,
        y=d.down(MIDDLE, y),
        width=280,
    )
    y = d.box("data", "tokens (b, h, w, dim)", x=MIDDLE, y=d.down(MIDDLE, y), width=250)
    start = d.down(MIDDLE, y, 14)
    light, heavy = 105, 330
    for name, branches in (
        (
            "attention, within windows",
            (
                "light attention\nall tokens",
                "routers select queries,\nkeys and values",
                "heavy attention\nselected tokens",
            ),
        ),
        (
            "feed-forward, over the whole image",
            ("light MLP\nall tokens", "router selects tokens", "heavy MLP\nselected tokens"),
        ),
    ):
        top = start
        row = top + 34
        router_end = d.box("routed", branches[1], x=heavy, y=row, width=190)
        heavy_end = d.box("attention", branches[2], x=heavy, y=d.down(heavy, router_end), width=190)
        light_end = d.box("layer", branches[0], x=light, y=row, width=150)
        total = heavy_end + 26
        d.arrow((light, light_end), (light, total + 14), (MIDDLE - 40, total + 14))
        d.arrow((heavy, heavy_end), (heavy, total + 14), (MIDDLE + 40, total + 14))
        y = d.box("layer", "+ input", x=MIDDLE, y=total, width=80)
        d.frame(name, x=8, y=top, width=WIDTH - 16, height=y - top + 26)
        d.arrow((MIDDLE - 30, top + 4), (light, row))
        d.arrow((MIDDLE + 30, top + 4), (heavy, row))
        start = d.down(MIDDLE, y + 26, 16)
    d.note("both frames: depth times", x=MIDDLE + 12, y=start - 3, left=True)
    y = d.box("layer", "mean over tokens, LayerNorm, Linear", x=MIDDLE, y=start + 4, width=280)
    d.box("data", "logits (b, num_classes)", x=MIDDLE, y=d.down(MIDDLE, y), width=250)
    return d


def mammut() -> Drawing:
    """Both passes of MaMMUT's text stack."""
    d = Drawing("MaMMUT: one text stack, run twice with the same weights")
    image, text = 120, 340
    y = d.box("data", "images", x=image, y=6, width=190)
    y = d.box("layer", "image encoder (SimpleViT)", x=image, y=d.down(image, y), width=190)
    d.note("(b, m, image_dim)", x=image + 8, y=y + 17, left=True)
    y = d.box(
        "attention",
        "pooling: q + 1 learned\nqueries attend to them",
        x=image,
        y=d.down(image, y, 24),
        width=190,
    )
    pooled = y
    d.box("data", "text (b, n)", x=text, y=6, width=190)
    d.arrow((text, 34), (text, 52))
    first = d.box("attention", "pass 1: causal, no image,\nCLS token at the end", x=text, y=52, width=190)
    d.arrow((text, first), (text, pooled + 40))
    row = pooled + 40
    d.arrow((image, pooled), (image, row))
    d.note("query 0", x=image + 8, y=pooled + 24, left=True)
    y = d.box("layer", "Linear, L2 norm\n(b, dim_latents)", x=image, y=row, width=150)
    d.box("layer", "Linear, L2 norm\n(b, dim_latents)", x=text, y=row, width=150)
    loss = y + 34
    d.arrow((image, y), (MIDDLE - 50, loss))
    d.arrow((text, y), (MIDDLE + 50, loss))
    y = d.box(
        "data", "contrastive loss: every text\nwith every image of the batch", x=MIDDLE, y=loss, width=230
    )
    second = y + 40
    d.arrow((image - 95, pooled - 20), (10, pooled - 20), (10, second + 30), (MIDDLE - 125, second + 30))
    d.note("queries 1 … q: (b, q, dim)", x=16, y=second - 8, left=True)
    d.arrow((text + 95, 20), (450, 20), (450, second + 30), (MIDDLE + 125, second + 30))
    d.note("the same text", x=358, y=second - 8, left=True)
    y = d.box(
        "attention",
        "pass 2: the same layers, causal,\nwith cross-attention\nto the image",
        x=MIDDLE,
        y=second,
        width=250,
    )
    y = d.box("layer", "LayerNorm, transposed token embedding", x=MIDDLE, y=d.down(MIDDLE, y), width=310)
    d.box("data", "logits (b, n, num_tokens): caption loss", x=MIDDLE, y=d.down(MIDDLE, y), width=310)
    return d


def scalable_vit() -> Drawing:
    """One stage of ScalableViT between its stem and its head."""
    d = Drawing("ScalableViT: a pyramid of stages with two kinds of attention")
    wide = 300
    y = d.box("data", "images (b, height, width, channels)", x=MIDDLE, y=6, width=wide)
    y = d.box("layer", "convolution 7 × 7, stride 4", x=MIDDLE, y=d.down(MIDDLE, y), width=wide)
    top = d.down(MIDDLE, y, 24)
    d.note("(b, x, y, dim)", x=MIDDLE + 12, y=top - 7, left=True)
    y = top + 14
    for number, (kind, text) in enumerate(
        (
            ("attention", "scalable self-attention: every pixel looks at\na map reduced by reduction_factor"),
            ("layer", "feed-forward"),
            ("layer", "first block only:\n3 × 3 depthwise convolution"),
            ("layer", "feed-forward"),
            ("attention", "windowed self-attention\n+ 3 × 3 convolution of the values"),
        )
    ):
        y = d.box(kind, text, x=MIDDLE, y=y if number == 0 else d.down(MIDDLE, y, 14), width=wide)
    d.frame("stage: depth[i] blocks, with residuals", x=40, y=top, width=WIDTH - 80, height=y - top + 30)
    y = d.box(
        "layer",
        "LayerNorm, convolution 3 × 3, stride 2:\nhalf the sides, twice the width",
        x=MIDDLE,
        y=d.down(MIDDLE, y + 30),
        width=wide,
    )
    d.arrow((MIDDLE + wide / 2, y - 22), (440, y - 22), (440, top + 12), (420, top + 12))
    d.note("next", x=436, y=y + 2)
    d.note("stage", x=436, y=y + 16)
    y = d.box(
        "layer", "after the last stage:\nmean, LayerNorm, Linear", x=MIDDLE, y=d.down(MIDDLE, y), width=wide
    )
    d.box("data", "logits (b, num_classes)", x=MIDDLE, y=d.down(MIDDLE, y), width=wide)
    return d


FIGURES = {
    "glom": glom,
    "hourglass": hourglass,
    "colt5": colt5,
    "mammut": mammut,
    "scalable_vit": scalable_vit,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}-architecture.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
