"""What the modules of another library receive and return while a model runs eagerly."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


@contextmanager
def eagerly() -> Generator[None]:
    """Everything runs operation by operation: compiled functions, scans, and what `jax.checkpoint` computes twice."""
    names = ("checkpoint", "remat")
    originals = {name: getattr(jax, name) for name in names}
    for name in names:
        setattr(jax, name, _without_checkpoint)
    try:
        with jax.disable_jit():
            yield
    finally:
        for name, original in originals.items():
            setattr(jax, name, original)


def _without_checkpoint(function: Callable | None = None, **options: Any) -> Callable:
    """What `jax.checkpoint` returns, but for the memory: the values are the same."""
    return function or partial(_without_checkpoint, **options)


class Recorder:
    """Keeps the arrays of every call.

    Attributes:
      calls: arrays by path of the module, number of its calls before, and "input" or "output"; in order of the ends
        of the calls.
    """

    def __init__(self) -> None:
        self.calls: dict[tuple[str, int, Literal["input", "output"]], tuple[np.ndarray, ...]] = {}
        self._counts: Counter[str] = Counter()
        self._running: list[str] = []

    def run(self, path: str, function: Callable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Calls `function` for the module at `path`. One inside of another one of the same module is a part of it."""
        if path in self._running:
            return function(*args, **kwargs)
        given = _values((args, dict(kwargs)))
        self._running.append(path)
        try:
            result = function(*args, **kwargs)
        finally:
            self._running.pop()
        returned = _values(result)
        if given is not None and returned is not None:
            count = self._counts[path]
            self._counts[path] += 1
            self.calls[path, count, "input"], self.calls[path, count, "output"] = given, returned
        return result


def _values(tree: Any) -> tuple[np.ndarray, ...] | None:
    """All arrays of a tree, those inside of `jax.vmap` with the batch as first axis; None where a trace hides them."""
    found = []
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array | np.ndarray) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        # jax.vmap's tracers hold the whole batch, and there is no public name for their class.
        while hasattr(leaf, "batch_dim"):
            tracer: Any = leaf
            mapped = isinstance(tracer.batch_dim, int)
            leaf = jnp.moveaxis(tracer.val, tracer.batch_dim, 0) if mapped else tracer.val
        if isinstance(leaf, Tracer):
            return None
        found.append(np.asarray(leaf))
    return tuple(found)
