"""Soft top-k by coordinate descent, and the router with which CoLT5 selects tokens by it.

Entropy-regularised linear programming (Wright 2015, https://arxiv.org/abs/1502.04759), whose temperature ε
shrinks from step to step (https://arxiv.org/abs/1610.06519).

Shapes: b batch, n tokens, d model width, r routes (independent selections), k selected tokens.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torch_reference.checks import require_bools, require_integer, require_number, require_shape


ROUTER_OPTIONS = (
    "n_iters",
    "fetch_k_ratio",
    "eps",
    "eps_decay",
    "eps_init",
    "cosine_sim_routing",
    "cosine_sim_scale",
)


def coordinate_descent(
    s: Float[Tensor, "*b n"],
    *,
    k: float,
    n_iters: int,
    eps: float,
    eps_init: float | None = None,
    eps_decay: float = 1.0,
    mask: Bool[Tensor, "*b n"] | None = None,
) -> Float[Tensor, "*b n"]:
    """Scores in [0, 1] that do not decrease with `s` and, at convergence, sum to `k`; see `jaxmodels.nn`."""
    fill = torch.finfo(s.dtype).min
    *steps, last = epsilon_schedule(n_iters, eps=eps, eps_init=eps_init, eps_decay=eps_decay)
    log_k = math.log(max(k, 1e-20))
    if mask is not None:
        s = s.masked_fill(~mask, fill)
    b = -s
    for eps in steps:
        z = (s + b) / eps
        if mask is not None:
            z = z.masked_fill(~mask, fill)
        a = eps * (log_k - z.logsumexp(dim=-1, keepdim=True))
        b = -F.relu(s + a)
    scores = ((s + a + b) / last).exp()
    return scores if mask is None else scores.masked_fill(~mask, 0)


def epsilon_schedule(n_iters: int, *, eps: float, eps_init: float | None, eps_decay: float) -> list[float]:
    """ε of every step, then, one decay later, ε of the final exponential: n_iters + 1 numbers ≥ `eps`."""
    require_integer("n_iters", n_iters, minimum=1)
    if not eps > 0:
        raise ValueError(f"eps must be > 0; got eps={eps!r}")
    if not 0 < eps_decay <= 1:
        raise ValueError(f"eps_decay must be in (0, 1]; got eps_decay={eps_decay!r}")
    schedule = [max(eps if eps_init is None else eps_init, eps)]
    for _ in range(n_iters):
        schedule.append(max(schedule[-1] * eps_decay, eps))
    return schedule


class Routed(NamedTuple):
    """The tokens that a router selects. A router that may select every token is disabled: it selects all.

    Attributes:
      indices: positions of the selected tokens, best first; None if the router is disabled.
      scores: the gate of each selected token. With straight-through its value is 1; its gradient is that of
        the soft top-k.
      tokens: the selected tokens; all of them, in order, if the router is disabled.
      margin: how much the last selected token leads the first rejected one; 0 is a tie. None like `indices`.
    """

    indices: Int[Tensor, "b r k"] | None
    scores: Float[Tensor, "b r k"]
    tokens: Float[Tensor, "b r k d"]
    margin: Float[Tensor, "b r"] | None


class CoordinateDescentRouter(nn.Module):
    """Selects the tokens most similar to a learned vector and gates them with a differentiable score.

    Differs from the package in two ways: ties are decided by a rule (`tie_break`), and with several routes each
    sample is routed to its own tokens (the package gathers from other samples). Computed in at least float32.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_tokens: int,
        num_routes: int = 1,
        straight_through: bool = True,
        tie_break: Literal["similarity", "index"] = "similarity",
        n_iters: int = 20,
        fetch_k_ratio: float = 9 / 8,
        eps: float = 0.03,
        eps_decay: float = 0.7,
        eps_init: float | None = 4.0,
        cosine_sim_routing: bool = False,
        cosine_sim_scale: float = 8,
    ) -> None:
        super().__init__()
        if tie_break not in ("similarity", "index"):
            raise ValueError(f'tie_break must be "similarity" or "index"; got tie_break={tie_break!r}')
        self.num_tokens = num_tokens
        self.straight_through = straight_through
        self.tie_break = tie_break
        self.n_iters = n_iters
        self.fetch_k_ratio = fetch_k_ratio
        self.eps = eps
        self.eps_decay = eps_decay
        self.eps_init = eps_init
        self.cosine_scale = cosine_sim_scale if cosine_sim_routing else None
        self.routing_token = nn.Parameter(torch.randn(num_routes, dim))

    def forward(self, x: Float[Tensor, "b n d"], indices: Int[Tensor, "b r k"] | None = None) -> Routed:
        """Selects `num_tokens` tokens per route: its own choice, or `indices`."""
        b, n, _ = x.shape
        r, k = self.routing_token.shape[0], self.num_tokens
        if n <= k:
            if indices is not None:
                raise ValueError(
                    f"indices must be None if all tokens are selected; got {n} tokens, num_tokens={k}"
                )
            tokens = repeat(x, "b n d -> b r n d", r=r)
            return Routed(None, torch.ones_like(tokens[..., 0]), tokens, None)

        similarity = self.similarity(x)  # b r n
        scores = coordinate_descent(
            similarity,
            k=min(k * self.fetch_k_ratio, n),
            n_iters=self.n_iters,
            eps=self.eps,
            eps_init=self.eps_init,
            eps_decay=self.eps_decay,
        )
        # Scores rise with the similarity, so both keys select the same scores. Many scores are exactly 1 or
        # exactly 0, however; among these only the similarity has an order.
        key = (similarity if self.tie_break == "similarity" else scores).detach()
        ranking, order = key.sort(dim=-1, descending=True, stable=True)
        margin = ranking[..., k - 1] - ranking[..., k]
        if indices is None:
            indices = order[..., :k]
        require_shape("indices", indices, (b, r, k))
        selected = scores.gather(-1, indices).to(x.dtype)
        if self.straight_through:
            selected = selected + (1 - selected).detach()
        rows = torch.arange(b, device=x.device)[:, None, None]
        return Routed(indices, selected, x[rows, indices], margin)

    def similarity(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b r n"]:
        """Similarity of every token to the vector of each route."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, token = x.to(dtype), self.routing_token.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            if self.cosine_scale is not None:
                x, token = F.normalize(x, dim=-1), F.normalize(token, dim=-1)
            similarity = torch.einsum("bnd,rd->brn", x, token)
            return similarity if self.cosine_scale is None else similarity * self.cosine_scale


def check_router_options(options: Mapping[str, Any]) -> None:
    """ValueError unless `options`, eps among them, are those of a ViT's routers and in their range."""
    unsupported = sorted(options.keys() - set(ROUTER_OPTIONS))
    if unsupported:
        raise ValueError(
            f"router_kwargs must hold nothing but {', '.join(ROUTER_OPTIONS)}; got {', '.join(unsupported)}"
        )
    for name, value in options.items():
        if name == "cosine_sim_routing":
            require_bools(cosine_sim_routing=value)
        elif not (name == "eps_init" and value is None):
            require_number(name, value)
    epsilon_schedule(
        options.get("n_iters", 20),
        eps=options["eps"],
        eps_init=options.get("eps_init"),
        eps_decay=options.get("eps_decay", 0.7),
    )
    ratio = options.get("fetch_k_ratio", 1)
    if not ratio >= 1:
        raise ValueError(f"fetch_k_ratio must be ≥ 1; got fetch_k_ratio={ratio!r}")
