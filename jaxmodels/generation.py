"""The next-token loss of a language model, and sampling from it: what the package's `AutoregressiveWrapper` does.

The PyTorch twin is `torch_reference/generation.py`.

Shapes: b batch, n tokens, m new tokens.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxmodels.checks import require_integer, require_sequence, require_tokens
from jaxmodels.losses import mean_cross_entropy
from jaxmodels.models.hourglass import HourglassTransformerLM, pad, require_ids
from jaxmodels.nn import at_least_float32


def next_token_loss(
    model: HourglassTransformerLM,
    tokens: Int[Array, "b n"],
    pad_value: int | Int[Array, ""] = 0,
    mask: Bool[Array, "b n-1"] | None = None,
) -> Float[Array, ""]:
    """Mean cross-entropy of the next tokens, without those that are `pad_value`; see `mean_cross_entropy`.

    The model gets tokens[:, :-1], so `mask` has one position fewer than `tokens`. The package computes the same
    when its `AutoregressiveWrapper` is called.
    """
    require_tokens("tokens", tokens)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return mean_cross_entropy(model(inputs, mask), targets, ignored=pad_value)


def generate(
    model: HourglassTransformerLM,
    start: Int[Array, "b n"],
    seq_len: int,
    *,
    eos_token: int | None = None,
    temperature: float = 1.0,
    filter_thres: float = 0.9,
    pad_value: int = 0,
    rngs: nnx.Rngs | None = None,
) -> Int[Array, "b m"]:
    """Samples up to `seq_len` tokens that continue `start`, and returns the new tokens only.

    The model sees at most the last max_seq_len tokens. The loop is compiled once for all prompt lengths, and again
    only when `seq_len` exceeds another multiple of max_seq_len. The package has this in
    `AutoregressiveWrapper.generate`.

    Args:
      model: a causal model; only then do prompts padded on the right give the same logits.
      start: the prompts, n ≥ 1 ids each.
      seq_len: the largest number of new tokens, m ≤ seq_len.
      eos_token: sampling ends when every row has drawn it; later tokens of a row become `pad_value`.
      temperature: divides the logits; 0 takes the most likely token.
      filter_thres: only the (1 - filter_thres) · v most likely tokens are drawn, at least one.
      pad_value: replaces the tokens after `eos_token`.
      rngs: `sample` draws the tokens; not needed if only one token passes the filter.

    Raises:
      ValueError: an argument is out of range, the model is not causal, or `rngs` is missing.
    """
    config = model.config
    if not config.causal:
        raise ValueError("model must be causal to generate; got a model with causal=False")
    require_tokens("start", start)
    require_sequence("start", start, None)
    require_ids("start", start, config.num_tokens)
    require_integer("seq_len", seq_len, minimum=0)
    require_sampling(temperature, filter_thres)
    k = 1 if temperature == 0 else max(1, int((1 - filter_thres) * config.num_tokens))
    if rngs is None and k > 1:
        raise ValueError("rngs must be given to draw tokens, as nnx.Rngs(0), or temperature=0; got rngs=None")

    window = jnp.asarray(start, jnp.int32)[:, -config.max_seq_len :]
    length = window.shape[1]
    count, out = sample(
        model,
        pad(window, 0, config.max_seq_len - length),
        length,
        seq_len,
        eos_token,
        temperature or 1.0,
        pad_value,
        jax.random.key(0) if rngs is None else rngs.sample(),
        k=k,
        capacity=max(1, -(-seq_len // config.max_seq_len)) * config.max_seq_len,
    )
    return out[:, : int(count)]


@partial(jax.jit, static_argnames=("k", "capacity"))
def sample(
    model: HourglassTransformerLM,
    window: Int[Array, "b n"],
    length: int | Int[Array, ""],
    seq_len: int | Int[Array, ""],
    eos_token: int | Int[Array, ""] | None,
    temperature: float | Float[Array, ""],
    pad_value: int | Int[Array, ""],
    key: Array,
    *,
    k: int,
    capacity: int,
) -> tuple[Int[Array, ""], Int[Array, "b {capacity}"]]:
    """The loop of `generate`. Returns the number of tokens drawn, and the tokens in a buffer of `capacity`."""
    b, max_seq_len = window.shape

    def unfinished(carry):
        count, _, _, _, finished = carry
        return (count < seq_len) & ~jnp.all(finished)

    def step(carry):
        count, window, length, out, finished = carry
        features = jax.lax.dynamic_index_in_dim(model.features(window), length - 1, axis=1, keepdims=False)
        values, indices = jax.lax.top_k(model.to_logits(features), k)
        values = at_least_float32(values)
        drawn = jax.random.categorical(jax.random.fold_in(key, count), values / temperature)
        token = jnp.take_along_axis(indices, drawn[:, None], axis=1)[:, 0]
        window = jnp.where(length == max_seq_len, jnp.roll(window, -1, axis=1), window)
        length = jnp.minimum(length + 1, max_seq_len)
        window = window.at[:, length - 1].set(token)
        out = out.at[:, count].set(token)
        if eos_token is not None:
            finished = finished | (token == eos_token)
        return count + 1, window, length, out, finished

    count, length = jnp.zeros((), jnp.int32), jnp.asarray(length, jnp.int32)
    out = jnp.zeros((b, capacity), jnp.int32)
    carry = count, window, length, out, jnp.zeros(b, bool)
    count, _, _, out, _ = jax.lax.while_loop(unfinished, step, carry)
    if eos_token is not None:
        is_eos = out == eos_token
        out = jnp.where(jnp.cumsum(is_eos, axis=1) - is_eos > 0, pad_value, out)
    return count, out


def require_sampling(temperature: float, filter_thres: float) -> None:
    """ValueError unless temperature ≥ 0 and 0 ≤ filter_thres ≤ 1."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be finite and ≥ 0; got temperature={temperature!r}")
    if not 0 <= filter_thres <= 1:
        raise ValueError(f"filter_thres must lie in [0, 1]; got filter_thres={filter_thres!r}")
