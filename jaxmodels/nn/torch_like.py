"""Flax's layers with PyTorch's defaults and PyTorch's numbers.

Every class defines `__call__`, even if it only calls Flax's: `nnx.capture`, which the comparison tool uses,
records only methods that a class defines itself.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jaxmodels.nn.dtypes import at_least_float32, promote


def uniform_fan_in(fan_in: int) -> jax.nn.initializers.Initializer:
    """Draws from U(-1/√fan_in, 1/√fan_in): what PyTorch's Linear and Conv use for weight and bias alike."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound, out_sharding=out_sharding)

    return init


class Linear(nnx.Linear):
    """Affine map of the last axis. Kernel and bias are uniform in ±1/√fan_in (Flax: LeCun normal and zeros)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        init = uniform_fan_in(max(in_features, 1))
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=init,
            bias_init=init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(self, inputs: Float[Array, "*b i"], out_sharding=None) -> Float[Array, "*b o"]:
        return by_rows(lambda rows: super(Linear, self).__call__(rows, out_sharding), inputs)


def by_rows(
    product: Callable[[Float[Array, "n i"]], Float[Array, "n o"]], x: Float[Array, "*b i"]
) -> Float[Array, "*b o"]:
    """Applies `product` to `x` with all leading axes flattened into one, and restores them.

    The gradient of the weights is then a product of two matrices. With more axes, XLA's CPU compiler first
    transposes one operand element by element (`benchmarks/LOG.md`).
    """
    out = product(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
    return out.reshape(*x.shape[:-1], out.shape[-1])


class Conv(nnx.Conv):
    """2-D convolution of channels-last images with symmetric integer padding (Flax: 'SAME', asymmetric).

    Initialised like PyTorch: kernel and bias uniform in ±1/√fan_in, fan_in = in_features / groups · area.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        init = uniform_fan_in(in_features // groups * kernel_size**2)
        super().__init__(
            in_features,
            out_features,
            kernel_size=(kernel_size, kernel_size),
            strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            feature_group_count=groups,
            use_bias=use_bias,
            kernel_init=init,
            bias_init=init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self, inputs: Float[Array, "b height width i"], out_sharding=None
    ) -> Float[Array, "b h w o"]:
        return super().__call__(inputs, out_sharding)


class Embed(nnx.Embed):
    """Table lookup, initialised from N(0, std²) with std 1 (Flax: 1/√dim).

    Ids must be in range: inside a compiled function JAX cannot raise.
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        std: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            num_embeddings,
            features,
            param_dtype=param_dtype,
            embedding_init=jax.nn.initializers.normal(std),
            rngs=rngs,
        )
        # Flax replaces None by param_dtype, which would cut a float64 table that is loaded later to float32.
        self.dtype = dtype

    def __call__(self, inputs: Int[Array, "*b"], out_sharding=None) -> Float[Array, "*b d"]:
        return self.table[inputs]

    def attend(self, query: Float[Array, "*b d"], out_sharding=None) -> Float[Array, "*b v"]:
        """Scores of every row of the table against `query`: the tied output projection of a language model."""
        return by_rows(lambda rows: rows @ self.table.astype(query.dtype).T, query)

    @property
    def table(self) -> Float[Array, "v d"]:
        """The embedding in the compute type."""
        return self.embedding[...].astype(self.dtype or self.embedding.dtype)


class LayerNorm(nnx.LayerNorm):
    """Layer norm of the last axis with epsilon 1e-5 (Flax: 1e-6), computed in at least float32.

    Flax's variance, E[x²] - E[x]², is inaccurate far from zero. Here x is centred first, and the rounding error
    of its mean is removed by a second mean: equal numbers, such as a white patch, give exactly zero, as in
    PyTorch, and not noise of 1e-5.
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        # Flax draws keys even for ones and zeros; from `rngs` they would change the weights of later layers.
        super().__init__(
            num_features,
            epsilon=1e-5,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=nnx.Rngs(0),
        )

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:  # ty: ignore[incompatible-method-override]
        assert self.scale is not None
        x, scale = promote(x, self.scale[...], dtype=self.dtype)
        scale = jnp.broadcast_to(scale, x.shape)
        normed = standardize(at_least_float32(x), self.epsilon)[0].astype(x.dtype) * scale
        return (
            normed
            if self.bias is None
            else normed + jnp.broadcast_to(self.bias[...].astype(x.dtype), x.shape)
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def standardize(x: Float[Array, "*b d"], epsilon: float) -> tuple[Float[Array, "*b d"], Float[Array, "*b 1"]]:
    """(x - mean) / √(variance + ε) of the last axis, and 1 / √(variance + ε).

    The derivative is written out, so that the backward pass needs these two and not `x`. XLA's CPU compiler would
    recompute `x` there from the outputs of all earlier layers, because it counts additions as free
    (`benchmarks/LOG.md`).
    """
    deviation = x - jnp.mean(x, axis=-1, keepdims=True)
    mean = jnp.mean(deviation, axis=-1, keepdims=True)
    variance = jnp.mean(deviation * deviation, axis=-1, keepdims=True) - mean * mean
    inverse = jax.lax.rsqrt(variance + epsilon)
    return (deviation - mean) * inverse, inverse


@standardize.defjvp
def _(
    epsilon: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    z, inverse = standardize(*primals, epsilon)
    (t,) = tangents
    along = jnp.mean(t * z, axis=-1, keepdims=True)
    dz = inverse * (t - jnp.mean(t, axis=-1, keepdims=True) - z * along)
    return (z, inverse), (dz, -inverse * inverse * along)
