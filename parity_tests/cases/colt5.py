"""Parity rows of the conditionally routed ViT: a base, then one row per option and mode.

The published package selects with `torch.topk`, which promises nothing about ties, and fails or leaks in two
configurations. Each row says how the package is run:

- RAW: as it is, after checking that no selection was a tie;
- a tie rule ("similarity" or "index"): with `topk` replaced by that rule, and both failures repaired;
- GIVEN: with `topk` replaced by the indices that all three are given.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from colt5_attention import transformer_block
from colt5_attention.vit import ConditionalRoutedViT as Published
from einops import rearrange
from flax import nnx

import torch_reference
from jaxmodels.models.colt5 import ConditionalRoutedViT, ConditionalRoutedViTConfig
from parity_tests.cases.case import Case
from tests.small_models import COLT5_CONFIG


RAW, GIVEN = "raw", "given"
# (scores, similarities, number to select, number of the call) -> indices
Choice = Callable[[torch.Tensor, torch.Tensor, int, int], torch.Tensor]

BASE = COLT5_CONFIG


def published(config: ConditionalRoutedViTConfig, **changes: Any) -> Published:
    """The package's model, without the option that we added (`tie_break`)."""
    arguments = asdict(config)
    del arguments["tie_break"]
    return Published(**arguments | changes)


def topk_by(rule: str) -> Choice:
    """Selects by a stable order of the scores or of the similarities."""

    def choose(scores: torch.Tensor, similarity: torch.Tensor, k: int, _call: int) -> torch.Tensor:
        key = similarity if rule == "similarity" else scores
        return key.sort(dim=-1, descending=True, stable=True).indices[..., :k]

    return choose


@contextmanager
def selecting(model: Published, choose: Choice | None) -> Iterator[None]:
    """The package with `choose` in the place of `topk` and with its two failures repaired; None: as it is.

    Either way float64 models get a float64 position table. Without `choose` a tie is an error.
    """
    similarities: list[torch.Tensor] = []
    routers = [m for m in model.modules() if isinstance(m, transformer_block.CoordinateDescentRouter)]
    descend = transformer_block.coor_descent
    topk = torch.Tensor.topk
    gather = transformer_block.batched_gather
    route_back = transformer_block.CoordinateDescentRouter.route_back
    calls = iter(range(1000))

    def recording(s: torch.Tensor, **options: Any) -> torch.Tensor:
        similarities.append(s.detach())
        return descend(s, **options)

    def selected(scores: torch.Tensor, k: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
        if choose is None:
            ranking = topk(scores, k + 1, dim).values
            assert (ranking[..., k - 1] > ranking[..., k]).all(), "a tie: run this row with a rule"
            return topk(scores, k, dim)
        indices = choose(scores.detach(), similarities[-1], k, next(calls))
        return scores.gather(-1, indices), indices

    def gather_own(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        if indices.ndim == 2:
            return gather(x, indices)
        b, r, k = (
            indices.shape
        )  # the package has repeated x to (b r), and then takes its rows as if they were b
        return gather(x, indices.reshape(b * r, k)).unflatten(0, (b, r))

    def route_all_back(self: Any, src: torch.Tensor, routed: torch.Tensor, indices: Any) -> torch.Tensor:
        return routed if indices is None else route_back(self, src, routed, indices)

    torch.set_default_dtype(next(model.parameters()).dtype)
    torch.Tensor.topk = selected
    for router in routers:
        router.coor_descent = recording
    if choose is not None:
        transformer_block.batched_gather = gather_own
        transformer_block.CoordinateDescentRouter.route_back = route_all_back
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.topk = topk
        for router in routers:
            router.coor_descent = descend
        transformer_block.batched_gather = gather
        transformer_block.CoordinateDescentRouter.route_back = route_back


def routing_in(x: Mapping[str, Any]) -> list[Any] | None:
    """The injected indices among the inputs of a row."""
    return [x[name] for name in sorted(x) if name.startswith("routing")] or None


def row(
    name: str,
    *,
    size: tuple[int, int] = (16, 12),
    how: str = RAW,
    sharpness: float = 1.0,  # of the routing vectors: 60 saturates the scores
    routing: Mapping[str, tuple[int, int, int]] | None = None,  # name -> (samples, tokens, selected)
    mode: str | None = None,
    **changes: Any,
) -> Case:
    config = replace(BASE, **changes)

    def reference() -> torch_reference.ConditionalRoutedViT:
        model = torch_reference.ConditionalRoutedViT(**asdict(config))
        with torch.no_grad():
            for router in model.routers:
                router.routing_token.mul_(sharpness)
        return model

    def inputs(rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays = {"img": rng.normal(size=(2, config.channels, *size))}
        for key, (samples, tokens, selected) in (routing or {}).items():
            order = rng.permuted(np.tile(np.arange(tokens), (samples, 1)), axis=1)
            arrays[key] = order[:, None, :selected]
        return arrays

    def call_published(model: Published, x: Mapping[str, Any]) -> torch.Tensor:
        given = routing_in(x)
        choose = None if how == RAW else topk_by(how)
        if how == GIVEN:
            choose = lambda _scores, _similarity, _k, call: rearrange(given[call], "b r k -> (b r) k")  # noqa: E731
        with selecting(model, choose):
            return model(x["img"])

    return Case(
        name=f"colt5/{name}",
        config=config,
        jax=lambda: ConditionalRoutedViT(config, rngs=nnx.Rngs(0)),
        reference=reference,
        published=lambda: published(config),
        inputs=inputs,
        to_jax=lambda x: {
            ("images" if k == "img" else k): (v.transpose(0, 2, 3, 1) if k == "img" else v)
            for k, v in x.items()
        },
        call_torch=lambda model, x: model(x["img"], routing_in(x)),
        call_jax=lambda model, x: model(x["images"], routing_in(x)),
        call_published=call_published,
        options=frozenset({mode} if mode else set()),
    )


CASES = [
    row("base"),
    row("image_size", image_size=8, size=(8, 16), patch_size=2, ff_num_heavy_tokens=5),
    row("patch_size", patch_size=2, size=(8, 12), image_size=(8, 12)),
    row("dim", dim=12),
    row("depth", how="similarity", depth=2),
    row("num_classes, channels", num_classes=2, channels=1),
    row("heavy heads", attn_heavy_heads=3, attn_heavy_dim_head=2),
    row("light heads", attn_light_heads=3, attn_light_dim_head=4),
    row("window", attn_light_window_size=4, size=(16, 8), image_size=(16, 8), attn_num_heavy_tokens_q=5),
    row("multipliers", ff_heavy_mult=1.3, ff_light_mult=0.37),
    row("all queries, all feed-forward", how="similarity", attn_num_heavy_tokens_q=4, ff_num_heavy_tokens=24),
    row("all context", attn_num_heavy_tokens_kv=5),
    row(
        "routers off",
        how="similarity",
        attn_num_heavy_tokens_q=4,
        attn_num_heavy_tokens_kv=4,
        ff_num_heavy_tokens=30,
        attn_num_routed_kv=2,
    ),
    row("straight_through", router_straight_through=False),
    row("default eps", default_coor_descent_eps=0.5),
    row("eps 0.03", how="similarity", router_kwargs={"eps": 0.03}),
    row("cosine", router_kwargs={"cosine_sim_routing": True, "cosine_sim_scale": 5}),
    row(
        "schedule",
        how="similarity",
        router_kwargs={"n_iters": 3, "eps_decay": 0.9, "eps_init": 3.0, "fetch_k_ratio": 1.5},
    ),
    row("routes", how="similarity", attn_num_routed_kv=2),
    row("saturated", how="similarity", sharpness=60),
    # With sharper scores some are subnormal in float32: XLA flushes these to 0, PyTorch does not.
    row("saturated by index", how="index", sharpness=12, tie_break="index", attn_num_heavy_tokens_kv=2),
    row(
        "indices given",
        how=GIVEN,
        routing={"routing 0": (12, 4, 2), "routing 1": (12, 4, 3), "routing 2": (2, 24, 7)},
        mode="routing=",
    ),
]
MODES = {"routing="}
