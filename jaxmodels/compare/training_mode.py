"""Both models in training mode: dropout with the same masks on both sides.

The masks are drawn once, in PyTorch's layout. The k-th call of a layer uses the same mask in every run, in PyTorch
and in JAX, at each training step.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange
from flax import nnx

from jaxmodels.compare.calls import PairError
from jaxmodels.compare.flax_mode import without_flax_dropout
from jaxmodels.compare.torch_mode import without_dropout
from jaxmodels.convert.table import Twin


TORCH_DROPOUT = (torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Dropout3d)


class Masks:
    """The random numbers behind every mask, by the path of the PyTorch layer and the number of its call."""

    def __init__(self) -> None:
        self.drawn: dict[tuple[str, int], np.ndarray] = {}

    def __deepcopy__(self, _: object) -> "Masks":
        return self  # all copies of a model share them

    def draw(self, path: str, call: int, shape: tuple[int, ...]) -> np.ndarray:
        """Numbers in [0, 1) in PyTorch's layout; those below the rate of the layer are dropped."""
        if (path, call) not in self.drawn or self.drawn[path, call].shape != shape:
            seed = [zlib.crc32(path.encode()), call]
            self.drawn[path, call] = np.random.default_rng(seed).random(shape, np.float32)
        return self.drawn[path, call]

    def in_flax(self, twin: Twin, call: int, shape: tuple[int, ...]) -> np.ndarray:
        """The same numbers in the layout of the Flax layer.

        Raises:
          PairError: PyTorch has no such call, or its shape fits in no way or in two ways.
        """
        drawn = self.drawn.get((twin.theirs, call))
        if drawn is None:
            raise PairError(
                f"{twin.ours}: JAX calls this dropout layer {call + 1} times, PyTorch calls {twin.theirs} {call} "
                "times; the masks of both sides must belong to the same calls"
            )
        if twin.axes not in (None, "... -> ..."):
            candidates = [rearrange(drawn, twin.axes)]
        else:
            candidates = [drawn, np.moveaxis(drawn, 1, -1)] if drawn.ndim > 2 else [drawn]
        fitting = [one for one in candidates if _can_broadcast(one.shape, shape)]
        if drawn.ndim == 3 and drawn.shape == shape:  # a sequence: both sides nearly always have (b, n, d)
            return drawn
        if not fitting or (len(fitting) > 1 and twin.axes is None and drawn.size > 1):
            ways = "in two ways" if fitting else "in no way"
            raise PairError(
                f"{twin.ours}: the mask of shape {drawn.shape} that PyTorch's {twin.theirs} uses fits JAX's array of "
                f"shape {shape} {ways}; give its Twin the axes, such as 'b c h w -> b h w c', or use inputs whose "
                "axes have different lengths"
            )
        return fitting[0]


def _can_broadcast(mask: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(mask) == len(shape) and all(a in (1, b) for a, b in zip(mask, shape, strict=True))


class ReplayedTorchDropout(torch.nn.Module):
    """Stands for a dropout layer of PyTorch; 1d, 2d and 3d ones drop whole channels."""

    def __init__(self, path: str, layer: torch.nn.Module, masks: Masks) -> None:
        super().__init__()
        self.path, self.masks, self.calls = path, masks, 0
        self.p: float = layer.p  # ty: ignore[invalid-assignment]
        self.drops_channels = not isinstance(layer, torch.nn.Dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = tuple(x.shape)
        if self.drops_channels:
            shape = (*shape[:2], *(1 for _ in shape[2:]))
        keep = torch.from_numpy(self.masks.draw(self.path, self.calls, shape) >= self.p)
        self.calls += 1
        return torch.zeros_like(x) if self.p == 1 else torch.where(keep, x / (1 - self.p), 0.0)


class ReplayedFlaxDropout(nnx.Module):
    """Stands for an `nnx.Dropout`."""

    def __init__(self, twin: Twin, rate: float, masks: Masks) -> None:
        self.twin, self.rate, self.masks, self.calls = twin, rate, masks, 0

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | None = None, rngs: object = None
    ) -> jax.Array:
        if deterministic:
            return inputs
        keep = jnp.asarray(self.masks.in_flax(self.twin, self.calls, inputs.shape) >= self.rate)
        self.calls += 1
        if self.rate == 1:
            return jnp.zeros_like(inputs)
        return jnp.where(keep, inputs / (1 - self.rate), jnp.zeros_like(inputs))


def begin_run(model: torch.nn.Module) -> None:
    """Before each forward pass: the next call of every dropout layer is its first again."""
    for module in model.modules():
        if isinstance(module, ReplayedTorchDropout):
            module.calls = 0


def replay_dropout(ours: nnx.Module, theirs: torch.nn.Module, twins: Sequence[Twin]) -> list[str]:
    """Gives dropout layers that are twins the same masks, and sets the rates of all others to 0.

    Both models are changed: `ours` must be a view of the user's model, and `theirs` a copy.

    Returns:
      Notes: which layers repeat their masks, and which drop nothing.
    """
    masks = Masks()
    torch_modules = dict(theirs.named_modules())
    flax_modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(ours)}
    replayed, silent = [], []
    for twin in twins:
        module, torch_module = flax_modules.get(twin.ours), torch_modules.get(twin.theirs)
        if isinstance(module, nnx.Dropout) and isinstance(torch_module, TORCH_DROPOUT):
            theirs.set_submodule(twin.theirs, ReplayedTorchDropout(twin.theirs, torch_module, masks))
            _set_flax_module(ours, twin.ours, ReplayedFlaxDropout(twin, module.rate, masks))
            replayed.append(twin.theirs)
    for path, module in theirs.named_modules():
        silent += [path] if without_dropout(module) else []
    paths = {twin.ours: twin.theirs for twin in twins}
    for path, module in nnx.iter_modules(ours):
        dotted = ".".join(map(str, path))
        silent += [paths.get(dotted, f"{dotted} in JAX")] if without_flax_dropout(module) else []
    notes = []
    if replayed:
        notes.append(f"{', '.join(replayed)}: dropout uses the same masks on both sides, drawn once")
    if silent:
        notes.append(f"{', '.join(dict.fromkeys(silent))}: the rate of dropout is set to 0 on both sides")
    return notes


def _set_flax_module(model: nnx.Module, path: str, module: nnx.Module) -> None:
    *parents, name = path.split(".")
    node: Any = model
    for part in parents:
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    if isinstance(node, nnx.List) and name.isdigit():
        node[int(name)] = module
    else:
        setattr(node, name, module)
