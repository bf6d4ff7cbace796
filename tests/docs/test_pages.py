"""The code of every page runs as it stands; pages that need PyTorch are in parity_tests/test_pages.py."""

import re
from pathlib import Path

import pytest

from tests.docs import pages


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "page",
    [page for page in pages.PAGES if not pages.needs_torch(page)],
    ids=lambda page: str(page.relative_to(pages.ROOT)),
)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(pages.ROOT), prepend=":")
    pages.run(page, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nassert 1 == 2\n```\n", r"page\.md:1: AssertionError"),
        ("one\n\n```python\n1 +\n```\n", "invalid syntax"),
        ("```python\nprint(1)\n```\n<!-- output -->\n```text\n2\n```\n", r"page\.md:5: the code before it"),
        ("```sh\npip install x\n```\n", "mark pip with a reason"),
        ("<!-- not run: long -->\n```sh\njaxmodels compare --nonsense\n```\n", "has no --nonsense"),
    ],
)
def test_a_wrong_block_is_found(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    with pytest.raises((AssertionError, SyntaxError), match=message):
        pages.run(page, tmp_path)


def test_a_marked_block_is_not_run(tmp_path: Path) -> None:
    page = pages.ROOT / "docs" / "nowhere.md"
    text = "<!-- not run: it would fail -->\n```python\nraise RuntimeError\n```\n"
    page = tmp_path / "page.md"
    page.write_text(text)
    (block,) = pages.blocks(page)
    assert block.reason == "it would fail"


def test_every_reason_says_something() -> None:
    for page in pages.PAGES:
        for block in pages.blocks(page):
            assert block.reason is None or len(block.reason) > 10, f"{page}:{block.line}"


def test_every_block_is_one_that_is_run_or_checked() -> None:
    for page in pages.PAGES:
        for block in pages.blocks(page):
            assert block.language in ("python", "sh", "text"), f"{page}:{block.line}: {block.language}"


def test_readme_is_short() -> None:
    readme = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 165  # a whole pair.py is 30 of them
    example = next(block for block in pages.blocks(pages.ROOT / "README.md") if block.language == "python")
    assert len(example.text.splitlines()) <= 12
    assert "torch" not in example.text


def test_links_between_pages_lead_somewhere() -> None:
    """Sphinx checks those inside of docs/; the README and CONTRIBUTING are read outside of it."""
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", (pages.ROOT / name).read_text(encoding="utf-8")):
            assert (pages.ROOT / target).exists(), f"{name} links to {target}"


def test_paths_in_contributing_exist() -> None:
    text = (pages.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:jaxmodels|torch_reference|tests|parity_tests|benchmarks|tools|docs)/[^`*]*)`", text
    )
    assert len(named) > 20
    missing = [path for path in named if "X.py" not in path and not (pages.ROOT / path).exists()]
    assert not missing
