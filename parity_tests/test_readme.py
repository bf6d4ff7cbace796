"""The README's examples run, and its table is the one that was generated."""

import json
import os
import re
import runpy
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(example)
    runpy.run_path(str(script))


def test_quickstart_is_short() -> None:
    lines = [
        line for line in EXAMPLES[0].splitlines() if line.strip() and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 20


def test_own_pair_example_prints_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [text for text in EXAMPLES if "table_from_names" in text]
    script = tmp_path / "example.py"
    script.write_text(example)
    runpy.run_path(str(script))
    promised = re.search(r"print\(result\.divergence\.detail\)  # (.*)", example)
    assert promised is not None
    assert capsys.readouterr().out.strip() == promised.group(1)


def test_table_is_generated() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "update_readme.py"))
    summary = json.loads((ROOT / "docs" / "compare.json").read_text())
    assert tool["with_table"](README, summary) == README, "run: make tables"
    assert set(summary["models"]) == {"glom", "hourglass", "colt5", "mammut", "scalable_vit"}
    assert all(entry[dtype]["ok"] for entry in summary["models"].values() for dtype in tool["DTYPES"])


def test_named_files_exist() -> None:
    for name in re.findall(r"^([a-z_]+/)  ", README, flags=re.MULTILINE):
        assert (ROOT / name).is_dir() or os.path.isdir(ROOT / "jaxmodels" / name), name
