"""The page of `jaxmodels demo`: the reports of its parts, one after the other, with one list of contents."""

import json
import re
from dataclasses import dataclass
from importlib import resources
from itertools import count
from pathlib import Path

import jinja2

from jaxmodels import pages
from jaxmodels.atomic import atomic_write


@dataclass(frozen=True)
class Part:
    """One of the reports, as a section of the page."""

    name: str  # its identifier in the page
    title: str
    body: str
    headings: list[tuple[str, str]]  # identifiers and texts of its chapters


def part_of_page(html: str, *, name: str, title: str) -> Part:
    """What a report's page shows, one level further down, and without its own list of contents.

    Args:
      html: a page that this package wrote.
      name: stands before every identifier of the page, so that all are unique.
      title: the heading above it.
    """
    body = html.partition("<body>")[2].rpartition("</body>")[0]
    body = re.sub(r"<nav class=\"contents\">.*?</nav>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"(</?h)([1-5])", lambda found: f"{found[1]}{int(found[2]) + 1}", body)
    numbers = count(1)

    def with_identifier(found: re.Match[str]) -> str:
        if 'id="' in found[1]:
            return found[0]
        return f'<h3 id="{name}-chapter-{next(numbers)}"{found[1]}>{found[2]}</h3>'

    body = re.sub(r"<h3([^>]*)>(.*?)</h3>", with_identifier, body, flags=re.DOTALL)
    headings = re.findall(r'<h3[^>]*\bid="([^"]*)"[^>]*>(.*?)</h3>', body, flags=re.DOTALL)
    return Part(name, title, body, [(target, re.sub(r"<[^>]*>", "", text)) for target, text in headings])


def write_page(output: Path, ours: dict[str, float], theirs: dict[str, float], *, same: bool) -> None:
    """report.html holds the reports of all parts, report.json their numbers."""
    template = resources.files("jaxmodels").joinpath("demo.html.j2").read_text()
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    parts = [
        ("train", "Trained in JAX"),
        ("compare-trained", "The trained weights on both sides"),
        ("compare", "All five models with fresh weights on both sides"),
    ]
    if (output / "benchmarks" / "report.html").exists():
        parts.append(("benchmarks", "Time on both sides"))
    html = page.render(
        style=pages.stylesheet(),
        rows=[(name, value, theirs[name]) for name, value in ours.items()],
        same=same,
        parts=[
            part_of_page(
                (output / folder / "report.html").read_text(encoding="utf-8"), name=folder, title=title
            )
            for folder, title in parts
        ],
    )
    with atomic_write(output / "report.html") as path:
        path.write_text(html, encoding="utf-8")
    report = json.loads((output / "compare" / "report.json").read_text())
    report["trained"] = {
        "jax": ours,
        "pytorch": theirs,
        **json.loads((output / "compare-trained" / "report.json").read_text())["models"][0],
    }
    with atomic_write(output / "report.json") as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
