"""The demo's page: the reports of its parts as sections, with one list of contents."""

import json
import re
from pathlib import Path

import pytest

from jaxmodels.demo_page import part_of_page, write_page


PAGE = """<!doctype html><html><head><title>t</title><style>p { color: red; }</style></head>
<body>
<h1>A run</h1>
<nav class="contents"><ul><li><a href="#test">Test</a></li></ul></nav>
<h2 id="test">Test &amp; data</h2><a href="#test">up</a><a href="https://example.com">away</a>
<svg id="plot-1"><path clip-path="url(#plot-1-clip)"/></svg>
<h2>Training <small>(float32)</small></h2><h3>Loss</h3>
</body></html>"""


def test_a_page_becomes_a_section() -> None:
    part = part_of_page(PAGE, name="train", title="Trained in JAX")
    assert part.headings == [("train-test", "Test &amp; data"), ("train-chapter-1", "Training (float32)")]
    assert "<style" not in part.body
    assert "<nav" not in part.body
    assert "<h2>A run</h2>" in part.body
    assert '<a href="#train-test">up</a>' in part.body
    assert 'href="https://example.com"' in part.body
    assert "url(#train-plot-1-clip)" in part.body
    assert "<h4>Loss</h4>" in part.body


@pytest.mark.parametrize("same", [True, False])
def test_one_page_with_one_list_of_contents(tmp_path: Path, same: bool) -> None:
    for folder in ("train", "compare-trained", "compare"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "report.html").write_text(PAGE, encoding="utf-8")
        (tmp_path / folder / "report.json").write_text('{"models": [{"model": "glom"}]}')
    write_page(tmp_path, {"top1": 0.5}, {"top1": 0.5}, same=same)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<body>") == html.count('<nav class="contents">') == 1
    assert "<iframe" not in html
    assert ('class="good">equal' in html) == same
    identifiers = re.findall(r'\bid="([^"]*)"', html)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'href="#([^"]*)"', html)) <= set(identifiers)
    assert json.loads((tmp_path / "report.json").read_text())["trained"]["jax"] == {"top1": 0.5}
