"""What headless Chromium sees of HTML pages: their widths, their verdicts and their colours, light and dark."""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


WIDE, NARROW, DARK = (1200, "light"), (400, "light"), (1200, "dark")
FIRST_SCREEN = 800  # px; the height of a phone
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; Debian: apt install chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=30000",
)
SCRIPT = Path(__file__).with_name("measure_pages.js")
WRAPPER = '<!doctype html><meta charset="utf-8"><body><pre id="findings"></pre><script>{script}</script>'


@dataclass(frozen=True)
class Page:
    """A page to be looked at.

    Attributes:
      path: its file; the pages that are measured together are below one folder.
      verdicts: texts by which a reader knows the result, each the whole text of an element.
    """

    path: Path
    verdicts: Sequence[str] = ()


@dataclass(frozen=True)
class View:
    """What was found on one page at one width in one theme; lists name the elements that are at fault."""

    width: int
    theme: str
    scroll_width: int
    overflowing: list[str]
    cut_off: list[str]
    scrolled_tables: list[str]
    verdicts: list[dict[str, Any]]
    background: float
    faint_texts: list[str]
    invisible_shapes: list[str]
    white_images: list[str]


Views = Mapping[tuple[int, str], View]


def measure(pages: Mapping[str, Page], folder: Path) -> dict[str, Views]:
    """Looks at all pages with one start of Chromium.

    Args:
      pages: the pages by name; their files are below `folder`.
      folder: served to the browser, which also keeps its profile there.

    Returns:
      For each page what was found in the views `WIDE`, `NARROW` and `DARK`.
    """
    described = {
        name: {"address": page.path.relative_to(folder).as_posix(), "verdicts": list(page.verdicts)}
        for name, page in pages.items()
    }
    views = [{"width": width, "theme": theme} for width, theme in (WIDE, NARROW, DARK)]
    # "</" would end the script.
    data = f"const VIEWS = {json.dumps(views)}, PAGES = {json.dumps(described)};".replace("</", "<\\/")
    (folder / "measured.html").write_text(
        WRAPPER.format(script=data + SCRIPT.read_text(encoding="utf-8")), encoding="utf-8"
    )
    findings = json.loads(_text_of_findings(folder))
    assert "error" not in findings, findings["error"]
    return {
        name: {(view["width"], view["theme"]): View(**view) for view in found}
        for name, found in findings.items()
    }


def check(views: Views) -> None:
    """AssertionError names what a reader of the page would miss."""
    wide, narrow, dark = (views[key] for key in (WIDE, NARROW, DARK))
    for view in (wide, narrow):
        assert not view.cut_off, f"cut off at {view.width} px: {view.cut_off}"
        assert not view.overflowing, f"outside of the page at {view.width} px: {view.overflowing}"
        assert view.scroll_width <= view.width, f"the page scrolls sideways at {view.width} px"
    assert not wide.scrolled_tables, f"at {wide.width} px: {wide.scrolled_tables}"
    assert dark.background < 0.1, "the page is bright in the dark theme"
    assert not dark.white_images, f"white in the dark theme: {dark.white_images}"
    for view in (wide, dark):
        assert not view.faint_texts, f"{view.theme}: {view.faint_texts}"
        assert not view.invisible_shapes, f"{view.theme}: {view.invisible_shapes}"


def check_verdict(views: Views, text: str) -> None:
    """AssertionError unless the verdict is on the first screen of a phone, and none needs scrolling sideways."""
    found = views[NARROW].verdicts
    assert found, "there is no verdict"
    assert found[0]["text"] == text, f"the first verdict is {found[0]['text']!r}"
    assert found[0]["top"] < FIRST_SCREEN, f"the verdict is {found[0]['top']:.0f} px down"
    hidden = [place for place in found if place["hidden"] > 1]
    assert not hidden, f"seen only after scrolling: {hidden}"


def _text_of_findings(folder: Path) -> str:
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert CHROMIUM is not None
            done = subprocess.run(
                [
                    CHROMIUM,
                    *FLAGS,
                    f"--user-data-dir={folder / 'profile'}",
                    "--dump-dom",
                    f"http://127.0.0.1:{server.server_port}/measured.html",
                ],
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=120,
                check=True,
            )
        finally:
            server.shutdown()
            thread.join()
    found = re.search(r'<pre id="findings">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, f"Chromium could not open the page:\n{done.stdout}\n{done.stderr}"
    assert found[1], f"Chromium did not finish measuring:\n{done.stderr}"
    return html.unescape(found[1])


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Requests are of no interest."""
