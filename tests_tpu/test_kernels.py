"""Pallas kernels compile for TPUs at the sizes in which the models use them.

A kernel is a function of arrays and an entry of `KERNELS`: its name, the function, and the shapes of its arguments.
"""

from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from jaxmodels.training.chips import topology_devices


# name: (function, arguments as jax.ShapeDtypeStruct)
KERNELS: dict[str, tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]] = {}


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel(name: str, topology: str, results: dict[str, Any]) -> None:
    function, shapes = KERNELS[name]
    place = SingleDeviceSharding(topology_devices(topology)[0])
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in shapes]
    compiled = jax.jit(function).lower(*arguments).compile()
    assert "tpu_custom_call" in compiled.as_text(), "the kernel was replaced by something else"
    results[f"{name}, {topology}"] = {"temporaries": compiled.memory_analysis().temp_size_in_bytes}
