"""What all HTML reports share: one stylesheet, and plots that follow the page's colours, light or dark."""

import io
import re
from importlib import resources
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours to draw with -> variables of colours.css. Matplotlib writes them into the SVG, where they are exchanged.
TEXT, MUTED, LINE = "#010101", "#010102", "#010103"
JAX, TORCH, NOISE, BAND, EXTRA = "#010104", "#010105", "#010106", "#010107", "#010108"
GOOD, BAD = "#010109", "#01010a"
_VARIABLES = {
    TEXT: "text",
    MUTED: "muted",
    LINE: "line",
    JAX: "jax",
    TORCH: "torch",
    NOISE: "noise",
    BAND: "band",
    EXTRA: "extra",
    GOOD: "good",
    BAD: "bad",
}
_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": LINE,
    "legend.facecolor": "none",
    "legend.edgecolor": LINE,
    "font.family": "sans-serif",
}


def stylesheet() -> str:
    """The colours and report.css, for a `<style>` element: a page loads nothing."""
    return _colours() + resources.files("jaxmodels").joinpath("report.css").read_text()


def _colours() -> str:
    return resources.files("jaxmodels").joinpath("colours.css").read_text()


def plot_settings() -> dict[Any, Any]:
    """For `matplotlib.rc_context`: texts and axes in the page's colours."""
    return dict(_SETTINGS)


def inline_svg(figure: "Figure", *, name: str) -> str:
    """A figure, drawn under `plot_settings`, as an `<svg>` element to put into a page inside `<div class="plot">`.

    Args:
      figure: drawn with this module's colours; any other colour stays what it is in both themes.
      name: unique in the page and read aloud by screen readers; the element's own identifiers are derived from it.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<image [^>]*?)\bid="[^"]*"', r"\1", svg
    )  # equal images have equal ones, and nothing needs them
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # Groups have names such as "axes_1" in every figure; identifiers are unique in a page.
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    label = name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" stroke-linejoin="round" ', 1)


def svg_file(figure: "Figure", *, name: str) -> str:
    """A figure as the content of an SVG file: as `inline_svg`, with colours of its own, light and dark."""
    style = f"<style>{_colours()}svg {{ background: var(--page); }}</style>"
    return inline_svg(figure, name=name).replace(">", f">{style}", 1)
