"""Which modules are twins, once it is known which parameters are."""

from collections.abc import Iterable, Sequence

import torch
from flax import nnx

from jaxmodels.convert.table import Parameter, Twin


def twins_of(ours: nnx.Module, theirs: torch.nn.Module, table: Sequence[Parameter]) -> list[Twin]:
    """Pairs of modules whose parameters, and those of all modules inside, are the same; in PyTorch's order.

    Where one module wraps another without adding a parameter, the outer ones and the inner ones are paired, if both
    sides have equally many. The root is left out: its inputs are the pair's.
    """
    pairs = {(entry.ours, entry.theirs) for entry in table}
    here = _by_content(
        (".".join(map(str, path)) for path, _ in nnx.iter_modules(ours)), {a for a, _ in pairs}, pairs, 0
    )
    there = _by_content((path for path, _ in theirs.named_modules()), {b for _, b in pairs}, pairs, 1)
    found = {}
    for content, paths in there.items():
        others = here.get(content, [])
        if len(others) == len(paths):
            found |= dict(zip(paths, others, strict=True))
        elif others:
            found[paths[-1]] = others[-1]  # the innermost do the work
    return [Twin(path, found[path], None) for path, _ in theirs.named_modules() if path and path in found]


def _by_content(
    paths: Iterable[str], names: set[str], pairs: set[tuple[str, str]], side: int
) -> dict[frozenset[tuple[str, str]], list[str]]:
    """Paths of modules by the pairs of parameters below them, outer modules first; lists and the root left out."""
    found: dict[frozenset[tuple[str, str]], list[str]] = {}
    for path in paths:
        content = frozenset(pair for pair in pairs if pair[side].startswith(f"{path}."))
        if path and content:
            found.setdefault(content, []).append(path)
    return {content: sorted(paths, key=len) for content, paths in found.items()}
