"""Attention in one kernel that never stores the logits: cuDNN's on NVIDIA GPUs, JAX's Pallas kernel on TPUs.

Each kernel has its own limits. Lengths and widths are padded to what it takes; `cudnn_accepts` and
`pallas_accepts` say what padding cannot help with.

Shapes: b batch, h heads, i/j query/key position, k key width, e value width.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float


WIDEST_CUDNN = 128  # the widest head that every GPU with the kernel takes
TILE = 128  # lanes of a TPU's registers: the Pallas kernel wants lengths that are multiples of it

Queries = Float[Array, "b h i k"]
Keys = Float[Array, "b #h j k"]
Values = Float[Array, "b #h j e"]
Mask = Bool[Array, "#b #h #i j"]
Out = Float[Array, "b h i e"]


def past_keys(i: int, j: int) -> Bool[Array, "1 1 i j"]:
    """True where a key is not later than the query; the last query belongs to the last key."""
    return jnp.tril(jnp.ones((1, 1, i, j), bool), j - i)


def cudnn_runs_here() -> bool:
    """Whether the local GPUs have cuDNN's fused attention: those of NVIDIA, from Ampere on."""
    device = jax.local_devices(backend="gpu")[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


def cudnn_accepts(q: Array, k: Array, v: Array) -> bool:
    """Whether `cudnn_attention` computes these queries, keys and values, and their gradients."""
    return (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and q.dtype == k.dtype == v.dtype
        and max(q.shape[-1], v.shape[-1]) <= WIDEST_CUDNN
        and q.size > 0
        and v.size > 0
    )


def cudnn_attention(q: Queries, k: Keys, v: Values, *, mask: Mask | None, causal: bool) -> Out:
    """`attend` by cuDNN, whose backward pass takes even lengths only, and widths that are multiples of 8."""
    i, j = q.shape[2], k.shape[2]
    if causal and i != j:  # the kernel aligns the first query with the first key
        mask = past_keys(i, j) if mask is None else mask & past_keys(i, j)
        causal = False
    bias_mask, key_lengths = None, None
    if mask is not None:
        # No row without keys reaches the kernel: what it makes of them depends on its version.
        bias_mask = jnp.broadcast_to(mask | _without_keys(mask, i, j, causal), (*mask.shape[:2], i, j))
        bias_mask = _pad(_pad(bias_mask, axis=3, multiple=2), axis=2, multiple=2, value=True)
    elif j % 2 and not causal:  # causal queries do not see padding that comes after them
        key_lengths = jnp.full(len(k), j, jnp.int32)
    width = max(q.shape[-1], v.shape[-1])
    padded = (_pad(_pad(x, axis=2, multiple=2), axis=3, multiple=8, least=width) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        *(rearrange(x, "b h n k -> b n h k") for x in padded),
        mask=bias_mask,
        scale=q.shape[-1] ** -0.5,
        is_causal=causal,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )
    out = rearrange(out, "b n h k -> b h n k")[:, :, :i, : v.shape[-1]]
    return out if mask is None else _mean_without_keys(out, v, _without_keys(mask, i, j, causal))


def pallas_accepts(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> bool:
    """Whether `pallas_attention` computes these queries, keys and values, and their gradients."""
    return (
        q.dtype in (jnp.bfloat16, jnp.float32)
        and q.dtype == k.dtype == v.dtype
        and q.size > 0
        and v.size > 0
        and (not causal or q.shape[2] == k.shape[2])
        and (mask is None or mask.shape[1:3] == (1, 1))
    )


def pallas_attention(q: Queries, k: Keys, v: Values, *, mask: Mask | None, causal: bool) -> Out:
    """`attend` by JAX's Pallas kernel for TPUs. On several devices it needs their mesh, by `jax.set_mesh`."""
    # Imported here: Pallas takes half a second, and nothing else uses it.
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    b, h, i, _ = q.shape
    j = k.shape[2]
    width = max(q.shape[-1], v.shape[-1])
    multiple = TILE if width > TILE else 1
    k, v = (jnp.broadcast_to(x, (b, h, *x.shape[2:])) for x in (k, v))
    padded = [_pad(_pad(x, axis=2, multiple=TILE), axis=3, multiple=multiple, least=width) for x in (q, k, v)]
    ids: tuple[Array, ...] = ()  # queries attend to keys with the same number
    if mask is not None or (j % TILE and not causal):
        seen = jnp.ones((b, j), bool) if mask is None else jnp.broadcast_to(mask[:, 0, 0], (b, j))
        keys = _pad(seen, axis=1, multiple=TILE).astype(jnp.int32)
        ids = jnp.ones((b, padded[0].shape[2]), jnp.int32), keys
    blocks = _blocks(*(x.shape[2] for x in padded[:2]), padded[0].shape[3])
    scale = q.shape[-1] ** -0.5

    def kernel(q: Array, k: Array, v: Array, *ids: Array) -> Array:
        segments = SegmentIds(*ids) if ids else None
        return flash_attention(
            q, k, v, segment_ids=segments, causal=causal, sm_scale=scale, block_sizes=blocks
        )

    out = _on_every_device(kernel, *padded, *ids)[:, :, :i, : v.shape[-1]]
    return out if mask is None else _mean_without_keys(out, v, _without_keys(mask, i, j, causal))


def _on_every_device(kernel: Callable[..., Array], *arrays: Array) -> Array:
    """Calls `kernel` with each device's examples: the compiler cannot cut a Pallas kernel by itself.

    Where the devices do not divide the examples they divide the heads or, failing that, all do everything.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto
    )
    devices = math.prod(mesh.shape[name] for name in axes)
    if devices == 1:
        return kernel(*arrays)
    b, h = arrays[0].shape[:2]
    examples = axes if b % devices == 0 else None
    heads = axes if examples is None and h % devices == 0 else None
    specs = tuple(P(examples, heads) if x.ndim == 4 else P(examples) for x in arrays)
    return jax.shard_map(kernel, in_specs=specs, out_specs=specs[0], axis_names=set(axes), check_vma=False)(
        *arrays
    )


def _blocks(queries: int, keys: int, width: int) -> Any:
    """Tiles of the Pallas kernel, as large as its memory of 16 MB allows: fewer steps, each with more to do."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes

    largest = 512 if width <= 2 * TILE else TILE
    q, k = (next(n for n in (512, 256, TILE) if n <= largest and size % n == 0) for size in (queries, keys))
    return BlockSizes(
        block_b=1,
        block_q=q,
        block_k_major=k,
        block_k=k,
        block_q_major_dkv=q,
        block_q_dkv=q,
        block_k_major_dkv=k,
        block_k_dkv=k,
        block_q_dq=q,
        block_k_major_dq=k,
        block_k_dq=k,
    )


def _without_keys(mask: Mask, i: int, j: int, causal: bool) -> Bool[Array, "#b #h #i 1"]:
    """True for queries that `mask` leaves no key."""
    return ~jnp.any(mask & past_keys(i, j) if causal else mask, axis=-1, keepdims=True)


def _mean_without_keys(out: Out, v: Values, keyless: Bool[Array, "#b #h #i 1"]) -> Out:
    """Gives queries without keys the mean of the values, as `attend` promises."""
    return jnp.where(keyless, jnp.mean(v, axis=2, keepdims=True), out)


def _pad(x: Array, *, axis: int, multiple: int, least: int = 0, value: bool = False) -> Array:
    """Appends zeros (or `value`) along `axis`, up to a multiple that is at least `least`."""
    size = -(-max(x.shape[axis], least) // multiple) * multiple
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=value) if size > x.shape[axis] else x
