"""Configurations of both Hourglass models, and the nested depths and shortening factors in them."""

from dataclasses import dataclass
from typing import Any, Literal

from jaxmodels.checks import require_bool, require_choice, require_integer, require_integer_fields


Depth = int | tuple[int, "Depth", int]


@dataclass(frozen=True, kw_only=True)
class HourglassTransformerConfig:
    """Hyperparameters with the names and defaults of the package's `HourglassTransformer`.

    A wrong value raises ValueError.
    """

    dim: int
    # Layers before, in and after the valley; a nested triple makes the valley an hourglass.
    depth: tuple[int, Depth, int]
    shorten_factor: int | tuple[int, ...] = 2  # one for all levels, or one each, outermost first
    attn_resampling: bool = True  # one attention layer after each shortening and each lengthening
    updown_sample_type: Literal["naive", "linear"] = "naive"  # mean and repetition, or linear maps
    heads: int = 8
    dim_head: int = 64
    causal: bool = False
    norm_out: bool = False

    def __post_init__(self) -> None:
        normalize_config(self)
        if isinstance(self.depth, int):
            raise ValueError(f"depth must be (pre, valley, post); got depth={self.depth!r}")


@dataclass(frozen=True, kw_only=True)
class HourglassTransformerLMConfig:
    """Hyperparameters with the names and defaults of the package's `HourglassTransformerLM`.

    A wrong value raises ValueError.
    """

    num_tokens: int
    dim: int
    max_seq_len: int  # rows of the position table
    depth: Depth  # an integer builds one transformer at full length
    shorten_factor: int | tuple[int, ...] | None = None  # None only for integer depth
    heads: int = 8
    dim_head: int = 64
    attn_resampling: bool = True
    updown_sample_type: Literal["naive", "linear"] = "naive"
    causal: bool = True

    def __post_init__(self) -> None:
        normalize_config(self)


def normalize_config(config: HourglassTransformerConfig | HourglassTransformerLMConfig) -> None:
    """Checks what both configurations have in common, and turns lists into tuples."""
    require_integer_fields(config)
    for name in ("attn_resampling", "causal", "norm_out"):
        require_bool(name, getattr(config, name, False))
    require_choice("updown_sample_type", config.updown_sample_type, ("naive", "linear"))
    depth = as_depth(config.depth)
    factors = as_factors(config.shorten_factor, count_levels(depth))
    object.__setattr__(config, "depth", depth)
    if isinstance(config.shorten_factor, list | tuple) or not factors:
        object.__setattr__(config, "shorten_factor", factors or None)


def as_depth(depth: Any) -> Depth:
    """Returns `depth` with tuples for lists; ValueError unless it is an integer ≥ 0 or (integer, depth, integer)."""
    if not isinstance(depth, list | tuple):
        return require_integer("depth", depth, minimum=0)
    if len(depth) != 3:
        raise ValueError(f"depth must be an integer or (pre, valley, post); got depth={depth!r}")
    pre, valley, post = depth
    return (
        require_integer("depth before the valley", pre, minimum=0),
        as_depth(valley),
        require_integer("depth after the valley", post, minimum=0),
    )


def count_levels(depth: Depth) -> int:
    """How many hourglasses are nested in one another."""
    return 0 if isinstance(depth, int) else 1 + count_levels(depth[1])


def as_factors(shorten_factor: Any, levels: int) -> tuple[int, ...]:
    """One shortening factor per hourglass level, outermost first."""
    if levels == 0:
        if shorten_factor is not None and shorten_factor not in (0, (), []):
            raise ValueError(
                f"shorten_factor must be None when depth is an integer; got shorten_factor={shorten_factor!r}"
            )
        return ()
    if not isinstance(shorten_factor, list | tuple):
        return (require_integer("shorten_factor", shorten_factor, minimum=1),) * levels
    if len(shorten_factor) != levels:
        raise ValueError(
            f"shorten_factor must have one entry per hourglass level, {levels} for this depth; "
            f"got shorten_factor={shorten_factor!r}"
        )
    return tuple(require_integer("shorten_factor", factor, minimum=1) for factor in shorten_factor)
