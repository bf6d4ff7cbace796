"""What a browser shows of the built site; `make docs` builds it into out/docs."""

import shutil

import pytest

from tests.docs.pages import ROOT
from tests.page_measurements import DARK, NARROW, WIDE, Page, Views, measure, needs_chromium


SITE = ROOT / "out" / "docs"
FAULT = '<article role="main"><div style="width: 90rem">a box as wide as a desk</div>'

pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="needs the site: make docs"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Views]:
    """All pages of the site, and one with a planted fault, looked at with one start of the browser."""
    site = tmp_path_factory.mktemp("site") / "site"
    shutil.copytree(SITE, site, ignore=shutil.ignore_patterns(".doctrees", "_modules"))
    sources = (page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md"))
    pages = {str(source): Page(site / source.with_suffix(".html")) for source in sources}
    start = (site / "start.html").read_text(encoding="utf-8")
    assert '<article role="main"' in start
    head, _, tail = start.partition('<article role="main"')
    (site / "fault.html").write_text(head + FAULT + tail.partition(">")[2], encoding="utf-8")
    return measure(pages | {"fault": Page(site / "fault.html")}, site)


def faults(views: Views) -> list[str]:
    """What a reader of the page would miss; the theme keeps its two drawers beside the page on purpose."""
    found = []
    for view in (views[WIDE], views[NARROW]):
        lost = [element for element in view.cut_off + view.overflowing if not element.startswith("<aside ")]
        found += [f"at {view.width} px: {element}" for element in lost]
        if view.scroll_width > view.width:
            found.append(f"the page scrolls sideways at {view.width} px")
    found += [f"at {WIDE[0]} px: {table}" for table in views[WIDE].scrolled_tables]
    return found + (["bright in the dark theme"] if views[DARK].background > 0.1 else [])


def test_nothing_is_lost_at_the_side(seen: dict[str, Views]) -> None:
    assert len(seen) > 10
    found = {name: faults(views) for name, views in seen.items() if name != "fault"}
    assert not any(found.values()), {name: lost for name, lost in found.items() if lost}


def test_a_planted_fault_is_found(seen: dict[str, Views]) -> None:
    assert [fault for fault in faults(seen["fault"]) if "a box as wide" in fault], faults(seen["fault"])
