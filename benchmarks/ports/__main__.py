"""`python -m benchmarks.ports`: judges the published ports that are installed here."""

import importlib
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tyro

from benchmarks.ports import report
from benchmarks.ports.catalogue import PORTS, Port
from benchmarks.ports.two_sides import FOLDER
from jaxmodels.atomic import atomic_write
from jaxmodels.compare import captures
from jaxmodels.compare.result import Result
from tools.tables import ROOT, update


RESULTS = ROOT / "benchmarks" / "ports" / "results.json"
LIBRARIES = ("jax", "flax", "equinox", "torch", "transformers")
STEPS = 1  # of AdamW


@dataclass(frozen=True, kw_only=True)
class Options:
    """Judge published ports, with tiny random weights. Ports whose packages are missing keep their earlier result.

    Attributes:
      output: the file with one entry per comparison.
      only: files of this folder, such as transformers_bert; by default all.
      tables: run nothing; write the table of the documentation from the committed results.
    """

    output: Path = RESULTS
    only: tuple[str, ...] = ()
    tables: bool = False


def main(options: Options) -> None:
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.is_file() else {}
    if options.tables:
        update("ports", report.table(results))
        return
    unknown = set(options.only) - {port.file for port in PORTS}
    if unknown:
        sys.exit(
            f"only must be of {', '.join(port.file for port in PORTS)}; got {', '.join(sorted(unknown))}"
        )
    for port in PORTS:
        if options.only and port.file not in options.only:
            continue
        for name, mode, result in _judged(port):
            results[name] = _entry(port, mode, result)
            print(f"{name}: {result.verdict}", file=sys.stderr, flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(options.output) as path:
                path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(report.table(results))


def _judged(port: Port) -> Iterator[tuple[str, str, Result]]:
    """The comparisons of a port that can be made here, by name and mode."""
    if port.two_environments:
        yield from _judged_by_captures(port)
    elif _is_installed(port.module) and _is_installed("torch"):
        from jaxmodels.compare import compare  # here: the other environment may lack PyTorch

        file = importlib.import_module(f"benchmarks.ports.{port.file}")
        for mode in port.modes:
            pairs = file.pair(mode) if len(port.modes) > 1 else file.pair()
            for pair in pairs if isinstance(pairs, list) else [pairs]:
                yield pair.name, mode, compare(pair, steps=STEPS, mode=mode)
    else:
        print(f"{port.file}: {port.package} or torch is not installed here", file=sys.stderr)


def _judged_by_captures(port: Port) -> Iterator[tuple[str, str, Result]]:
    """Captures the sides that are installed here; the verdict comes where JAX's side is, after PyTorch's."""
    file = importlib.import_module(f"benchmarks.ports.{port.file}")
    theirs, ours = FOLDER / port.file / "torch", FOLDER / port.file / "jax"
    if _is_installed("torch") and _is_installed("transformers"):
        captures.capture_torch(path=theirs, name=port.file, steps=STEPS, **file.torch_side())
        print(f"{port.file}: PyTorch's side is in {theirs}", file=sys.stderr)
    if _is_installed(port.module):
        if not theirs.is_dir():
            sys.exit(f"{theirs} is missing: run this first where torch and transformers are installed")
        captures.capture_jax(path=ours, name=port.file, steps=STEPS, **file.jax_side())
        yield port.file, "eval", captures.judge(theirs, ours)


def _entry(port: Port, mode: str, result: Result) -> dict[str, Any]:
    """What is kept of a comparison."""
    found = result.divergence
    output = max(result.outputs, key=lambda check: check.error / check.tolerance)
    return {
        "file": port.file,
        "mode": mode,
        "package_version": version(port.package),
        "verdict": result.verdict,
        "reason": result.reason,
        "layer": found.layer if found else None,
        "difference": found.detail if found else None,
        "error": found.error if found else None,
        "diagnosis": result.diagnosis,
        "output_error": output.error,
        "output_tolerance": output.tolerance,
        "layers": len({check.name for check in result.layers}),
        "gradients": len(result.gradients),
        "notes": result.notes,
        "day": time.strftime("%Y-%m-%d"),
        "versions": _versions(port),
    }


def _versions(port: Port) -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    if port.two_environments:
        theirs = captures.read_capture(FOLDER / port.file / "torch").versions
        found |= {"torch": f"{theirs['torch']} on Python {theirs['python']}"}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    main(tyro.cli(Options))
