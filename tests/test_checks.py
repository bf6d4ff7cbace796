"""Checks of arguments: the types of numbers that NumPy does not know, and arrays of either framework."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxmodels.checks import require_floating, require_images, require_tokens


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e4m3fn, np.dtype(">f4")], ids=str
)
def test_floating_point(dtype: np.dtype) -> None:
    require_floating("x", np.zeros(2, dtype))
    require_images(np.zeros((1, 2, 2, 3), dtype), channels=3)


@pytest.mark.parametrize("array", [jnp.zeros(2, jnp.bfloat16), jnp.float32(1)], ids=str)
def test_floating_point_in_jax(array: jax.Array) -> None:
    require_floating("x", array)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "complex64", "object", "S5", "int4"])
def test_not_floating_point(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"x must be floating-point; got x.dtype={np.zeros(1, dtype).dtype}"):
        require_floating("x", np.zeros(1, dtype))


def test_keys_of_random_numbers_are_no_numbers() -> None:
    with pytest.raises(ValueError, match=r"x must be floating-point; got x.dtype=key"):
        require_floating("x", jax.random.key(0))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint64"])
def test_tokens(dtype: str) -> None:
    require_tokens("text", np.zeros((1, 2), dtype))


@pytest.mark.parametrize("dtype", ["float32", "bool", "timedelta64", "U3"])
def test_not_tokens(dtype: str) -> None:
    with pytest.raises(ValueError, match=r"text must be integer ids; got text.dtype="):
        require_tokens("text", np.zeros((1, 2), dtype))
