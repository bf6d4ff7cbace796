"""The kernels of GPUs and TPUs without either: what they are asked for, what is chosen, and the numbers."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmodels import SimpleViT, SimpleViTConfig
from jaxmodels.nn import attend, attention


KERNELS = {"cudnn": "cuda", "pallas": "tpu"}  # and the platform that has it
HAS_PLATFORM = "platform" in inspect.signature(jax.sharding.AbstractDevice).parameters  # since jax 0.10.1
CALLS = {"cudnn": "__cudnn$fmha", "pallas": "@tpu_custom_call"}  # by the kernel's name in a lowered program


CUDNN = 1e-2  # of the largest number, from float32; measured: 0.0055, with jax 0.12 0.0078, two of bfloat16's digits


@pytest.fixture(autouse=True)
def _promotion() -> Iterator[None]:
    """The kernels, and their backward passes, promote types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def cudnn_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets JAX lower cuDNN's kernel on a machine that has no cuDNN."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def arrays(
    i: int, j: int, *, widths: tuple[int, int] = (16, 16), heads: int = 2, dtype: Any = jnp.bfloat16
) -> list[jax.Array]:
    shapes = (2, 2, i, widths[0]), (2, heads, j, widths[0]), (2, heads, j, widths[1])
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def masks(kind: str, i: int, j: int) -> jax.Array | None:
    """Every second mask of "keys" hides all of them; every query of "queries" has one."""
    if kind == "none":
        return None
    if kind == "keys":
        return (jnp.arange(j) < jnp.asarray([[max(j - 2, 1)], [0]]))[:, None, None]
    return jax.random.bernoulli(jax.random.key(1), 0.5, (2, 1, i, j)).at[..., 0].set(True)


def both(implementation: str, **options: Any) -> Callable[..., Any]:
    """The outputs and, for their sine, the gradients."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(q, k, v, implementation=implementation, **options)
        return jnp.sin(out.astype(jnp.float32)).sum(), out

    def call(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        (_, out), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    return call


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Differences in units of the largest number of each array."""
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1))


LENGTHS = [(1, 2), (5, 5), (4, 10), (257, 256)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mask", ["none", "keys", "queries"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("i", "j"), LENGTHS)
def test_both_passes_lower(
    kernel: str, i: int, j: int, causal: bool, mask: str, cudnn_without_gpu: None
) -> None:
    """JAX refuses odd lengths in cuDNN's backward pass, where training used to end."""
    inputs = arrays(i, j, widths=(12, 20), heads=1)
    program = jax.jit(both(kernel, mask=masks(mask, i, j), causal=causal)).trace(*inputs)

    text = program.lower(lowering_platforms=(KERNELS[kernel],)).as_text()
    possible = kernel == "cudnn" or ((mask != "queries" or i == 1) and (not causal or i == j))
    assert text.count(CALLS[kernel]) == {"cudnn": 2, "pallas": 3}[kernel] * possible


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("widths", [(8, 8), (128, 40), (130, 8), (512, 512)])
def test_types_and_widths(kernel: str, dtype: Any, widths: tuple[int, int], cudnn_without_gpu: None) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        program = jax.jit(both(kernel)).trace(*arrays(6, 6, widths=widths, dtype=dtype))
        text = program.lower(lowering_platforms=(KERNELS[kernel],)).as_text()
    if kernel == "cudnn":
        possible = dtype in (jnp.float16, jnp.bfloat16) and max(widths) <= 128
    else:
        possible = dtype in (jnp.float32, jnp.bfloat16)
    assert (CALLS[kernel] in text) == possible


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("i", "j", "options"),
    [(0, 4, {}), (4, 0, {}), (6, 6, {"dropout": lambda x: x}), (4, 0, {"causal": True})],
)
def test_what_no_kernel_can_do_goes_the_usual_way(kernel: str, i: int, j: int, options: dict) -> None:
    inputs = arrays(i, j)
    assert_close(both(kernel, **options)(*inputs), both("xla", **options)(*inputs), 0)


@pytest.fixture
def kernel_in_place_of_cudnn(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Replaces cuDNN's kernel by JAX's own attention with the same rules; returns the arguments of its calls."""
    calls = []
    real = jax.nn.dot_product_attention

    def stand_in(q: Any, k: Any, v: Any, *, implementation: str, **options: Any) -> Any:
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == q.shape[3] % 8 == 0
        mask = options["mask"]
        assert mask is None or mask.shape[2:] == (q.shape[1], k.shape[1])
        calls.append(options)
        return real(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    return calls


@pytest.mark.parametrize("mask", ["none", "keys", "queries"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("i", "j", "heads"), [(1, 2, 2), (5, 5, 1), (4, 11, 2)])
def test_cudnn_is_the_same_attention(
    i: int, j: int, heads: int, causal: bool, mask: str, kernel_in_place_of_cudnn: list[dict]
) -> None:
    inputs = arrays(i, j, widths=(12, 20), heads=heads)
    options = {"mask": masks(mask, i, j), "causal": causal}

    fused = jax.jit(both("cudnn", **options))(*inputs)

    exact = jax.jit(both("xla", **options))(*(x.astype(jnp.float32) for x in inputs))
    assert {x.dtype for x in fused} == {jnp.dtype(jnp.bfloat16)}
    assert_close((x.astype(jnp.float32) for x in fused), exact, CUDNN)
    assert len(kernel_in_place_of_cudnn) == 1


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs Pallas kernels on the CPU."""
    jax.clear_caches()
    monkeypatch.setattr(pallas, "pallas_call", functools.partial(pallas.pallas_call, interpret=True))
    yield
    jax.clear_caches()


@pytest.mark.parametrize(
    ("i", "j", "widths", "causal", "mask", "dtype", "tolerance"),
    [
        (5, 5, (12, 20), True, "keys", jnp.float32, 2e-6),  # measured: 6e-7
        (129, 3, (130, 16), False, "none", jnp.float32, 2e-6),  # measured: 4e-7
        (130, 130, (16, 16), True, "none", jnp.bfloat16, 1e-2),  # measured: 0.0059
    ],
)
def test_pallas_is_the_same_attention(
    i: int,
    j: int,
    widths: tuple[int, int],
    causal: bool,
    mask: str,
    dtype: Any,
    tolerance: float,
    interpreted: None,
) -> None:
    inputs = arrays(i, j, widths=widths, heads=1, dtype=dtype)
    options = {"mask": masks(mask, i, j), "causal": causal}

    fused = jax.jit(both("pallas", **options))(*inputs)

    assert_close(fused, jax.jit(both("xla", **options))(*inputs), tolerance)


@pytest.mark.parametrize(("b", "h"), [(8, 3), (3, 8), (3, 3)])
def test_pallas_on_several_devices(b: int, h: int, interpreted: None) -> None:
    """Each device computes its examples, or its heads, or everything; the compiler could not divide the kernel."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)
    q = jax.random.normal(jax.random.key(0), (b, h, 4, 8))
    mask = (jnp.arange(4) < 3)[None, None, None]

    def call(x: jax.Array, implementation: str) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attend(x, x, x, mask=mask, implementation=implementation)

    placed = jax.device_put(
        q, NamedSharding(mesh, P(*[("data", "fsdp") if n == 8 else None for n in (b, h)]))
    )
    program = jax.jit(functools.partial(call, implementation="pallas")).lower(placed)
    out = program.compile()(placed)

    np.testing.assert_allclose(out, call(q, "xla"), rtol=0, atol=1e-6)
    assert out.sharding.is_equivalent_to(placed.sharding, 4)


@pytest.mark.parametrize(
    ("platform", "dtype", "length", "expected"),
    [
        ("gpu", jnp.bfloat16, 64, "cudnn"),
        ("gpu", jnp.float16, 64, "cudnn"),
        ("gpu", jnp.float32, 64, None),
        ("gpu", jnp.bfloat16, 63, None),
        ("tpu", jnp.bfloat16, 128, "pallas"),
        ("tpu", jnp.float32, 128, "pallas"),
        ("tpu", jnp.bfloat16, 127, None),
        ("tpu", jnp.float16, 128, None),
        ("cpu", jnp.bfloat16, 256, None),
        ("other gpu", jnp.bfloat16, 256, None),
    ],
)
def test_the_choice(
    platform: str, dtype: Any, length: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a kernel: blocks on a CPU, one pass anywhere else."""
    chosen = []

    def kernel(name: str) -> Callable[..., Any]:
        return lambda q, k, v, **_: chosen.append(name) or jnp.zeros((*q.shape[:3], v.shape[-1]), q.dtype)

    monkeypatch.setattr(attention, "platform_of", lambda _: platform.removeprefix("other "))
    monkeypatch.setattr(attention, "cudnn_runs_here", lambda: platform == "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for name in KERNELS:
        monkeypatch.setattr(attention, f"{name}_attention", kernel(name))
    passes = []
    one_pass = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *args: passes.append(1) or one_pass(*args))

    attend(*arrays(length, length, dtype=dtype), causal=True)

    assert chosen == ([] if expected is None else [expected])
    blocks = -(-length // attention.BLOCK) if platform == "cpu" else 1
    assert len(passes) == (blocks if expected is None else 0)


def test_several_tpus_without_a_mesh_get_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler would refuse to divide it among them."""
    monkeypatch.setattr(attention, "platform_of", lambda _: "tpu")
    assert jax.device_count() > 1
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,)).abstract_mesh
    x = jax.ShapeDtypeStruct((8, 1, 128, 8), jnp.bfloat16)

    for context, kernels in ((contextlib.nullcontext(), 0), (jax.sharding.use_abstract_mesh(mesh), 1)):

        def call(x: jax.Array, context: Any = context) -> jax.Array:
            with context:
                return attend(x, x, x)

        text = str(jax.make_jaxpr(call)(x))
        assert text.count("pallas_call[") == kernels


def test_the_platform_is_that_of_arrays_mesh_or_default(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def call(x: jax.Array) -> jax.Array:
        seen.append(attention.platform_of(x))
        return x

    x = jnp.ones(3)
    call(x)
    jax.eval_shape(call, x)
    with jax.default_device("cpu"):
        jax.eval_shape(call, x)
    with jax.default_device(jax.devices()[1]):
        jax.eval_shape(call, x)
    assert seen == ["cpu"] * 4
    for kind, platform in (("TPU v6 lite", "tpu"), ("NVIDIA H200", "gpu"), ("cpu", "cpu")):
        device = jax.sharding.AbstractDevice(kind, None, *[platform] * HAS_PLATFORM)
        mesh = jax.sharding.AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            jax.eval_shape(call, jax.ShapeDtypeStruct((2,), jnp.float32))
        assert seen.pop() == platform


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("mask", ["none", "keys", "queries"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("i", "j"), [*LENGTHS, (256, 256)])
def test_cudnn_itself(i: int, j: int, causal: bool, mask: str) -> None:
    inputs = arrays(i, j, widths=(64, 40), heads=1)
    options = {"mask": masks(mask, i, j), "causal": causal}
    fused = jax.jit(both("cudnn", **options))(*inputs)
    plain = both("xla", **options)(*(x.astype(jnp.float32) for x in inputs))
    assert_close((x.astype(jnp.float32) for x in fused), plain, CUDNN)


def test_one_view_sends_every_attention_through_the_kernel(kernel_in_place_of_cudnn: list[dict]) -> None:
    encoder = SimpleViT(
        SimpleViTConfig(image_size=16, patch_size=8, num_classes=2, dim=16, depth=2, heads=2, mlp_dim=16),
        dtype=jnp.bfloat16,
        rngs=nnx.Rngs(0),
    )

    nnx.view(encoder, attention="cudnn")(jnp.ones((1, 16, 16, 3)))

    assert len(kernel_in_place_of_cudnn) == 2


def test_the_kernel_of_tpus_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "platform_of", lambda x: "gpu")
    with pytest.raises(
        ValueError, match="implementation must be 'auto', 'xla' or 'cudnn' on a GPU: the Pallas"
    ):
        attend(*arrays(128, 128), implementation="pallas")
