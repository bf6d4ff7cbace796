"""The Pallas kernel of attention compiles for TPUs, forward and backward, at the sizes in which presets use it."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct
from jax.sharding import SingleDeviceSharding

from jaxmodels.nn.attention import attend
from jaxmodels.training.chips import topology_devices


# queries, keys and values, whether they are causal, and whether a mask hides keys
KERNELS = {
    "hourglass-sotu-gpu": ((4, 6, 1024, 64), (4, 6, 1024, 64), (4, 6, 1024, 64), True, False),
    "hourglass-sotu-gpu, padded": ((4, 6, 1024, 64), (4, 6, 1024, 64), (4, 6, 1024, 64), True, True),
    "mammut-paper, image": ((4, 16, 256, 80), (4, 16, 256, 80), (4, 16, 256, 80), False, False),
    "one head of keys": ((4, 8, 256, 64), (4, 1, 257, 64), (4, 1, 257, 64), False, False),
    "keys wider than values": ((4, 2, 1024, 40), (4, 2, 256, 40), (4, 2, 256, 32), False, False),
}


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel(name: str, topology: str, results: dict[str, Any]) -> None:
    *shapes, causal, masked = KERNELS[name]
    place = SingleDeviceSharding(topology_devices(topology)[0])
    arguments = [ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in shapes]
    mask = ShapeDtypeStruct((shapes[1][0], 1, 1, shapes[1][2]), bool, sharding=place)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = mask if masked else None
        out = attend(q, k, v, mask=hidden, causal=causal, implementation="pallas")
        return jnp.sin(out.astype(jnp.float32)).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arguments, mask).compile()
    # One forward, and one each for the gradients of the keys with the values and of the queries.
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
    results[f"kernel of {name}, {topology}"] = {"temporaries": compiled.memory_analysis().temp_size_in_bytes}
