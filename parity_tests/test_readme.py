"""The pair.py of the README, as a new user pastes it, says what the README shows."""

import re
import sys
from pathlib import Path

import pytest

from jaxmodels import __main__ as command_line
from tests.docs import pages


def test_the_pair_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = pages.blocks(pages.ROOT / "README.md")
    (index,) = [i for i, block in enumerate(blocks) if "def pair()" in block.text]
    (tmp_path / "pair.py").write_text(blocks[index].text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jaxmodels", "compare", "pair.py", "--steps", "0"])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == 1
    shown, printed = (
        re.sub(r"error \d\.\de-\d\d", "error", text)
        for text in (blocks[index + 1].text, capsys.readouterr().out)
    )
    assert printed.endswith(shown)
