"""The code blocks of the documentation, and how they are run.

The blocks of a page run in their order, in one folder, and share their names. A block that cannot run has the
reason in the line above it: `<!-- not run: needs a GPU -->`. Even then its Python must parse and the flags of its
`jaxmodels` commands must exist. `<!-- output -->` above a text block says that the Python block before it prints
this text.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

from jaxmodels.__main__ import main


ROOT = Path(__file__).parents[2]
INCLUDED = ("README.md", "CONTRIBUTING.md", "jaxmodels/compare/guide.md")  # in pages of the site
PAGES = sorted(
    path
    for path in [*(ROOT / name for name in INCLUDED), *(ROOT / "docs").rglob("*.md")]
    if "```" in path.read_text(encoding="utf-8")
)
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
      language: "python", "sh" or "text".
      text: its lines.
      line: line number in the page, counted from 1.
      reason: why it is not run, or None.
      is_output: whether it is what the Python block before it prints.
    """

    language: str
    text: str
    line: int
    reason: str | None
    is_output: bool


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in their order; MyST's directives are not among them."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        mark = match["mark"] or ""
        reason = mark.removeprefix("not run: ") if mark.startswith("not run: ") else None
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(match["language"], match["text"], line, reason, mark == "output"))
    return found


def needs_torch(page: Path) -> bool:
    """Whether a Python block that is run imports PyTorch or a package that does."""
    code = "\n".join(block.text for block in blocks(page) if block.language == "python" and not block.reason)
    return re.search(r"^\s*(import torch|from torch|from jaxmodels\.compare)", code, re.MULTILINE) is not None


def run(page: Path, folder: Path) -> None:
    """Runs a page's blocks in `folder`; AssertionError names the page and the line of the block that fails."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        place = f"{page.relative_to(ROOT)}:{block.line}"
        if block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            if block.reason is None:
                printed = _execute(code, names, place)
        elif block.language == "sh":
            _run_shell(block, folder, place)
        elif block.is_output:
            assert printed.strip() == block.text.strip(), f"{place}: the code before it prints\n{printed}"


def _execute(code: object, names: dict[str, object], place: str) -> str:
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(code, names)
    except Exception as error:
        raise AssertionError(f"{place}: {type(error).__name__}: {error}") from error
    return output.getvalue()


def _run_shell(block: Block, folder: Path, place: str) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "jaxmodels":
            _check_flags(words[1:], place)
        if block.reason is None:
            assert words[0] == "jaxmodels", f"{place}: only jaxmodels is run; mark {words[0]} with a reason"
            command = [sys.executable, "-m", *words]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{place}: {line}\n{done.stdout}\n{done.stderr}"


def _check_flags(words: list[str], place: str) -> None:
    # `train` and `compile` have their flags behind the preset; the other commands have them behind their own name.
    command = words[:2] if words[0] in ("train", "compile") and not words[1].startswith("-") else words[:1]
    for word in words:
        if word.startswith("--") and word != "--help":
            flag = word.partition("=")[0]
            assert flag in help_of(*command), f"{place}: jaxmodels {' '.join(command)} has no {flag}"


@cache
def help_of(*command: str) -> str:
    """What `jaxmodels COMMAND --help` prints, on a wide terminal."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="200"),
        mock.patch.object(sys, "argv", ["jaxmodels", *command, "--help"]),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        main()
    return output.getvalue()
