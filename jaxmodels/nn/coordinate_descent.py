"""A differentiable top-k by coordinate descent, and the router of CoLT5 that selects tokens with it.

Entropy-regularised linear programming (Wright 2015, https://arxiv.org/abs/1502.04759), whose temperature ε
shrinks from step to step (https://arxiv.org/abs/1610.06519). The PyTorch twin is
`torch_reference/coordinate_descent.py`.

Shapes: b batch, n tokens, d model width, r routes (independent selections), k selected tokens.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jaxmodels.checks import require_bool, require_integer, require_number, require_shape
from jaxmodels.nn.dtypes import at_least_float32, promote
from jaxmodels.nn.normalize import l2_normalize
from jaxmodels.nn.torch_like import by_rows


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
    s: Float[Array, "*b n"],
    *,
    k: float,
    n_iters: int,
    eps: float,
    eps_init: float | None = None,
    eps_decay: float = 1.0,
    mask: Bool[Array, "*b n"] | None = None,
) -> Float[Array, "*b n"]:
    """Scores in [0, 1]: larger similarities get no smaller scores, and at convergence the scores sum to `k`.

    A score that reaches the upper bound is exactly 1 and passes no gradient.

    Args:
      s: similarities, in the type of the computation.
      k: the sum to reach, a real number; the same for every row, however many entries `mask` leaves.
      n_iters: number of steps. With a large range of `s`, 20 steps, the package's default, do not converge.
      eps: the lowest temperature.
      eps_init: temperature of the first step; by default `eps`.
      eps_decay: factor of the temperature from one step to the next.
      mask: True where an entry takes part; the others score 0.

    Raises:
      ValueError: an argument out of range.
    """
    schedule = epsilon_schedule(n_iters, eps=eps, eps_init=eps_init, eps_decay=eps_decay)
    log_k = math.log(max(k, 1e-20))
    if mask is not None:
        s = jnp.where(mask, s, jnp.finfo(s.dtype).min)
    return _soft_top_k(s, mask, log_k, schedule)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _soft_top_k(
    s: Float[Array, "*b n"], mask: Bool[Array, "*b n"] | None, log_k: float, schedule: list[float]
) -> Float[Array, "*b n"]:
    *steps, last = schedule

    def step(carry: tuple[Array, Array], eps: Float[Array, ""]) -> tuple[tuple[Array, Array], None]:
        a, b, _ = _dual_step(s, mask, log_k, carry[1], eps)
        return (a, b), None

    start = jnp.zeros_like(s[..., :1]), -s
    (a, b), _ = jax.lax.scan(step, start, jnp.asarray(steps, s.dtype))
    return _scores(s, mask, a, b, last)


@_soft_top_k.defjvp
def _(
    log_k: float, schedule: list[float], primals: tuple[Array, Array | None], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    """Differentiates the steps while they are made, so that a backward pass has no loop of its own.

    With p = softmax((s + b)/ε), the next a moves by da' = -Σ p (ds + db). Where the bound cut the entry off,
    b = -(s + a) and ds + db = -da; elsewhere b = 0 and ds + db = ds. So da = -Σ weights ds, with weights' =
    (p where free) + (Σ p where cut off) weights, and before the first step, where b = -s, they are 0.
    """
    (s, mask), (ds, _) = primals, tangents
    *steps, last = schedule

    def step(carry: tuple[Array, ...], eps: Float[Array, ""]) -> tuple[tuple[Array, ...], None]:
        _, b, cut_off, weights = carry
        a, b, p = _dual_step(s, mask, log_k, b, eps)
        passed_on = jnp.where(cut_off, p, 0).sum(axis=-1, keepdims=True)
        weights = jnp.where(cut_off, 0, p) + passed_on * weights
        return (a, b, s + a > 0, weights), None  # the slope at 0 is that of PyTorch's relu

    start = jnp.zeros_like(s[..., :1]), -s, jnp.ones_like(s, bool), jnp.zeros_like(s)
    (a, b, cut_off, weights), _ = jax.lax.scan(step, start, jnp.asarray(steps, s.dtype))
    scores = _scores(s, mask, a, b, last)
    if mask is not None:
        weights = jnp.where(mask, weights, 0)
    slope = jnp.where(cut_off, 0, scores / last)
    return scores, slope * (ds - (weights * ds).sum(axis=-1, keepdims=True))


def _dual_step(
    s: Float[Array, "*b n"],
    mask: Bool[Array, "*b n"] | None,
    log_k: float,
    b: Float[Array, "*b n"],
    eps: Float[Array, ""],
) -> tuple[Float[Array, "*b 1"], Float[Array, "*b n"], Float[Array, "*b n"]]:
    """a, the dual variable of the sum; b, those of the upper bounds; and the softmax by which a depends on s + b."""
    z = (s + b) / eps
    if mask is not None:
        z = jnp.where(mask, z, jnp.finfo(s.dtype).min)
    largest = z.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(z - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    a = eps * (log_k - (jnp.log(total) + largest))
    return a, -jax.nn.relu(s + a), exponentials / total


def _scores(
    s: Float[Array, "*b n"],
    mask: Bool[Array, "*b n"] | None,
    a: Float[Array, "*b 1"],
    b: Float[Array, "*b n"],
    eps: float,
) -> Float[Array, "*b n"]:
    scores = jnp.exp((s + a + b) / eps)
    return scores if mask is None else jnp.where(mask, scores, 0)


def epsilon_schedule(n_iters: int, *, eps: float, eps_init: float | None, eps_decay: float) -> list[float]:
    """The temperature of each step and, last, of the final exponential: n_iters + 1 numbers ≥ `eps`."""
    require_integer("n_iters", n_iters, minimum=1)
    if not eps > 0:
        raise ValueError(f"eps must be > 0; got eps={eps!r}")
    if not 0 < eps_decay <= 1:
        raise ValueError(f"eps_decay must be in (0, 1]; got eps_decay={eps_decay!r}")
    schedule = [max(eps if eps_init is None else eps_init, eps)]
    for _ in range(n_iters):
        schedule.append(max(schedule[-1] * eps_decay, eps))
    return schedule


@jax.custom_jvp
def straight_through(scores: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Ones, with the derivative of `scores`. Without a backward pass XLA then removes the computation of `scores`."""
    return jnp.ones_like(scores)


@straight_through.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return straight_through(*primals), tangents[0]


class Routed(NamedTuple):
    """The tokens that a router selects. A router that may select every token is disabled: it selects all.

    Attributes:
      indices: positions of the selected tokens, best first; None if the router is disabled.
      scores: the gate of each selected token. With straight-through its value is 1; its gradient is that of
        the soft top-k.
      tokens: the selected tokens; all of them, in order, if the router is disabled.
      margin: how much the last selected token leads the first rejected one; 0 is a tie. None like `indices`.
    """

    indices: Int[Array, "b r k"] | None
    scores: Float[Array, "b r k"]
    tokens: Float[Array, "b r k d"]
    margin: Float[Array, "b r"] | None


class CoordinateDescentRouter(nnx.Module):
    """Selects the tokens most similar to a learned vector and gates them with a differentiable score.

    Differs from the package in two ways: ties are decided by a rule (`tie_break`), and with several routes each
    sample is routed to its own tokens (the package gathers from other samples). Computed in at least float32 with
    the most precise matrix product: a rounding error can select another token.

    Args:
      dim: width of the tokens.
      num_tokens: tokens that each route selects; it selects all if there are no more.
      num_routes: independent selections, each with a routing vector of its own.
      straight_through: gates are 1, with the gradient of the soft top-k.
      tie_break: the order of equal scores: by similarity to the routing vector, or by position.
      n_iters, eps, eps_decay, eps_init: see `coordinate_descent`.
      fetch_k_ratio: the scores sum to `num_tokens` times this, at most to the number of tokens.
      cosine_sim_routing: the similarity is a cosine times `cosine_sim_scale` instead of an inner product.
      param_dtype: type of the fresh routing vectors.
      rngs: `params` draws them.
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
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_tokens = num_tokens
        self.straight_through = straight_through
        self.tie_break = tie_break
        self.n_iters = n_iters
        self.fetch_k_ratio = fetch_k_ratio
        self.eps = eps
        self.eps_decay = eps_decay
        self.eps_init = eps_init
        self.cosine_scale = cosine_sim_scale if cosine_sim_routing else None
        self.routing_token = nnx.Param(jax.random.normal(rngs.params(), (num_routes, dim), param_dtype))

    def __call__(self, x: Float[Array, "b n d"], indices: Int[Array, "b r k"] | None = None) -> Routed:
        """Selects `num_tokens` tokens per route: its own choice, or `indices`."""
        b, n, _ = x.shape
        r, k = self.routing_token.shape[0], self.num_tokens
        if n <= k:
            if indices is not None:
                raise ValueError(
                    f"indices must be None if all tokens are selected; got {n} tokens, num_tokens={k}"
                )
            tokens = repeat(x, "b n d -> b r n d", r=r)
            return Routed(None, jnp.ones_like(tokens[..., 0]), tokens, None)

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
        key = jax.lax.stop_gradient(similarity if self.tie_break == "similarity" else scores)
        ranking, order = jax.lax.top_k(key, k + 1)
        margin = ranking[..., k - 1] - ranking[..., k]
        if indices is None:
            indices = order[..., :k]
        require_shape("indices", indices, (b, r, k))
        rows = jnp.arange(b)[:, None, None]
        selected = jnp.take_along_axis(scores, indices, axis=-1, mode="promise_in_bounds").astype(x.dtype)
        if self.straight_through:
            selected = straight_through(selected)
        tokens = x.at[rows, indices].get(mode="promise_in_bounds", unique_indices=r == 1)
        return Routed(indices, selected, tokens, margin)

    def similarity(self, x: Float[Array, "b n d"]) -> Float[Array, "b r n"]:
        """Similarity of every token to the vector of each route."""
        x, token = map(at_least_float32, promote(x, self.routing_token[...], dtype=None))
        if self.cosine_scale is not None:
            x, token = l2_normalize(x), l2_normalize(token)
        # XLA's CPU compiler would transpose x for "bnd,rd->brn".
        similarity = by_rows(lambda rows: jnp.matmul(rows, token.T, precision="highest"), x)
        similarity = rearrange(similarity, "b n r -> b r n")
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
            require_bool(name, value)
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
