"""From the bytes of a batch to what models read, inside the compiled step. Shapes: b batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8, UInt32

from jaxmodels.training.task import Batch


def image_inputs(batch: Batch) -> Float32[Array, "b height width c"]:
    """The images of a batch, scaled, and recoloured if it says how."""
    images = scale_images(batch["images"])
    return recolor_images(images, batch["recoloring"]) if "recoloring" in batch else images


def scale_images(
    images: UInt8[Array, "*b height width c"], *, offset: float = 127.5, scale: float = 127.5
) -> Float32[Array, "*b height width c"]:
    """`scale_pixels` on the device: (byte - offset) / scale.

    It differs from `scale_pixels` in the last bit of some numbers. The difference is exact and the product is rounded
    once, so that no compiler can make another number of it.
    """
    return (images.astype(jnp.float32) - jnp.float32(offset)) * jnp.float32(1 / scale)


def recolor_images(
    images: Float32[Array, "b height width c"], recoloring: Float32[Array, "b 2 c"]
) -> Float32[Array, "b height width c"]:
    """Images between -1 and 1, each channel times 1 + a share and plus an offset, both from `draw_recoloring`."""
    gains, offsets = 1 + recoloring[:, 0], recoloring[:, 1]
    return jnp.clip(images * gains[:, None, None] + offsets[:, None, None], -1, 1)


def add_noise(
    images: Float32[Array, "b height width c"], keys: UInt32[Array, "b 2"], *, deviation: float
) -> Float32[Array, "b height width c"]:
    """Images with normally distributed noise, which depends on the key of each image alone."""

    def noise(key: UInt32[Array, "2"]) -> Float32[Array, "height width c"]:
        # Named, so that a user's default generator does not change the noise.
        return jax.random.normal(
            jax.random.wrap_key_data(key, impl="threefry2x32"), images.shape[1:], jnp.float32
        )

    return images + jnp.float32(deviation) * jax.vmap(noise)(keys)
