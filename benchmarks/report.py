"""results.json, the tables and the plots that are made of it, and what moved since an earlier run."""

import json
from pathlib import Path
from typing import Any


Results = dict[str, Any]


def read(path: Path) -> Results:
    return json.loads(path.read_text())


def write(results: Results, folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def table(results: Results) -> str:
    rows: dict[tuple, dict[str, Any]] = {}
    for c in results["cells"]:
        rows.setdefault((c["model"], c["size"], c["mode"], c["precision"]), {})[c["implementation"]] = c
    lines = []
    for key, cells in rows.items():
        j = cells.get("jax")
        t = " ".join(
            f"{n}={c['median_ms']:.2f}[{c['q1_ms']:.2f},{c['q3_ms']:.2f}]"
            for n, c in cells.items()
            if c["median_ms"]
        )
        r = " ".join(
            f"/{n}={j['median_ms'] / c['median_ms']:.2f}"
            for n, c in cells.items()
            if j and n != "jax" and c["median_ms"]
        )
        m = " ".join(
            f"{n}:{c['peak_mb']:.0f}MB,{c['first_call_s']:.1f}s" for n, c in cells.items() if c["peak_mb"]
        )
        lines.append(f"{' '.join(key):34} {r}  {t} {m} A/A={j.get('again_ms', 0) / j['median_ms']:.3f}")
    return "\n".join(lines)


def moves(earlier: Results, results: Results) -> str:
    return ""
