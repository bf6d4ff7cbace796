"""Parity rows of GLOM: a base, then one row per option and mode."""

from dataclasses import asdict, replace
from typing import Any

import glom_pytorch
import numpy as np
from flax import nnx

import torch_reference
from jaxmodels.models.glom import Glom, GlomConfig
from parity_tests.cases.case import Case


BASE = GlomConfig(dim=8, levels=3, image_size=12, patch_size=4)


def row(
    name: str,
    *,
    size: tuple[int, int] = (12, 12),
    offset: float = 0.0,
    state: bool = False,
    call: dict[str, Any] | None = None,
    mode: str | None = None,
    **changes: Any,
) -> Case:
    config = replace(BASE, **changes)
    call = call or {}

    def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays = {"img": offset + rng.normal(size=(2, 3, *size))}
        if state:
            n = size[0] * size[1] // config.patch_size**2
            arrays["levels"] = rng.normal(size=(2, n, config.levels, config.dim))
        return arrays

    return Case(
        name=f"glom/{name}",
        config=config,
        jax=lambda: Glom(config, rngs=nnx.Rngs(0)),
        reference=lambda: torch_reference.Glom(**asdict(config)),
        published=lambda: glom_pytorch.Glom(**asdict(config)),
        inputs=inputs,
        to_jax=lambda x: {"images": x["img"].transpose(0, 2, 3, 1)} | {k: x[k] for k in x if k == "levels"},
        call_torch=lambda model, x: model(**x, **call),
        call_jax=lambda model, x: model(**x, **call),
        options=frozenset({mode} if mode else set()),
    )


CASES = [
    row("base"),
    row("dim", dim=5),
    row("levels", levels=2),
    row("image_size", image_size=16, size=(16, 16)),
    row("patch_size", patch_size=2, size=(6, 6)),
    row("consensus_self", consensus_self=True),
    row("local_consensus_radius", local_consensus_radius=1.5),
    row("radius without self", local_consensus_radius=1, consensus_self=True),
    row("iters", call={"iters": 2}, mode="iters"),
    row("no iterations", call={"iters": 0}),
    row("levels given", state=True, call={"iters": 3}, mode="levels="),
    row("return_all", call={"return_all": True}, mode="return_all"),
    row("oblong image", size=(8, 12)),
    row("off-centre input", offset=30.0),
]
MODES = {"iters", "levels=", "return_all"}
