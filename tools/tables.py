"""Generated text on pages, between the markers `<!-- name: begin -->` and `<!-- name: end -->`.

A page that holds both markers of a table, each on a line of its own, gets that table.
"""

from collections.abc import Callable
from pathlib import Path

from jaxmodels.atomic import atomic_write


ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "benchmarks/README.md", "docs/**/*.md")


def pages(name: str, root: Path = ROOT) -> list[Path]:
    """The pages that hold the first marker of `name` on a line of its own."""
    begin, _ = markers(name)
    found = sorted({path for pattern in PAGES for path in root.glob(pattern)})
    return [path for path in found if begin in path.read_text(encoding="utf-8").splitlines()]


def update(name: str, text: str | Callable[[Path], str], root: Path = ROOT) -> list[Path]:
    """Writes `text` between the markers of `name` on every page that has them.

    Args:
      name: the name in the markers.
      text: ends with a newline. A function is called with the folder of the page, for relative links.
      root: folder of the repository.

    Returns:
      The pages.

    Raises:
      ValueError: no page has the markers, or a page lacks the second one.
    """
    found = pages(name, root)
    if not found:
        raise ValueError(
            f"no page holds {' and '.join(markers(name))}: looked at {', '.join(PAGES)} in {root}"
        )
    for page in found:
        part = text if isinstance(text, str) else text(page.parent)
        changed = replace_between(page, name, part)
        with atomic_write(page) as path:
            path.write_text(changed, encoding="utf-8")
    return found


def replace_between(page: Path, name: str, text: str) -> str:
    """The content of a page with `text` between the markers of `name`; ValueError if a marker is missing."""
    begin, end = (f"{marker}\n" for marker in markers(name))
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} must hold {begin.strip()} and {end.strip()}, each on its own line")
    return before + begin + text + end + after


def markers(name: str) -> tuple[str, str]:
    """The lines before and after the generated text."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
