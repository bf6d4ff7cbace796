"""Other JAX libraries in training mode, inside of jax.checkpoint, with stacked weights, and what is refused."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from torch import nn

from jaxmodels.compare import Function, Haiku, Linen, Result
from parity_tests.adapter_pairs import FEATURES, KEY, judged, vmapped
from parity_tests.toy_pairs import in_torch, normal


class LinenTraining(linen.Module):
    momentum: float = 0.9

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.BatchNorm(not train, momentum=self.momentum, epsilon=1e-5, name="batch")(x)
        x = linen.Dropout(0.5, deterministic=not train)(x)
        return linen.Dense(3, name="head")(x)


class LinenByMutability(linen.Module):
    """As jax-resnet: the statistics of the batch wherever they can be stored."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stored = self.is_mutable_collection("batch_stats")
        return linen.BatchNorm(not stored, momentum=0.9, epsilon=1e-5, name="batch")(x)


class EquinoxTraining(eqx.Module):
    batch: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, momentum: float = 0.9) -> None:
        self.batch = eqx.nn.BatchNorm(8, "batch", momentum=momentum, mode="batch")
        self.drop, self.head = eqx.nn.Dropout(0.5), eqx.nn.Linear(8, 3, key=KEY)

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.batch(x, state)
        return self.head(self.drop(x)), state


class TestTrainingMode:
    """Dropout drops nothing; the statistics move, and Flax's variance is known to have another divisor."""

    def linen(self, **options: Any) -> Result:
        module = LinenTraining(**options)
        variables = module.init(KEY, FEATURES[0], train=False)
        return self.judged(Linen(module, variables, train=True))

    def equinox(self, **options: Any) -> Result:
        ours = eqx.nn.make_with_state(EquinoxTraining)(**options)
        batched = lambda model, inputs: jax.vmap(model, axis_name="batch")(inputs["x"])  # noqa: E731
        return self.judged(ours, call_ours=batched)

    def judged(self, ours: Any, **options: Any) -> Result:
        theirs = in_torch(
            lambda self, x: self.head(self.drop(self.batch(x))),
            batch=nn.BatchNorm1d(8),
            drop=nn.Dropout(0.5),
            head=nn.Linear(8, 3),
        )
        return judged(ours, theirs, normal(40, 8), mode="train", **options)

    def test_linen(self) -> None:
        assert self.statistics(self.linen()) == (True, "nothing else differs")
        assert self.statistics(self.linen(momentum=0.1)) == (False, "together they are the difference")

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_linen_by_mutability(self, mode: str) -> None:
        module = LinenByMutability()
        ours = (module, module.init(KEY, FEATURES[0]))
        theirs = in_torch(lambda self, x: self.batch(x), batch=nn.BatchNorm1d(8))
        result = judged(ours, theirs, normal(40, 8), mode=mode)
        assert all(check.ok for check in result.outputs)
        assert bool(result.statistics) == (mode == "train")

    def test_equinox(self) -> None:
        assert self.statistics(self.equinox()) == (True, "nothing else differs")

    @staticmethod
    def statistics(result: Result) -> tuple[bool, str]:
        mean, var = result.statistics
        assert all(check.ok for check in result.outputs)
        return mean.ok, var.reason.rpartition("; ")[2]


class LinenRemat(linen.Module):
    scale: float = 1.0

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.remat(linen.Dense)(6, name="first")(x)
        return linen.Dense(3, name="last")(self.scale * x)


class EquinoxCheckpoint(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear
    scale: float = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.scale * eqx.filter_checkpoint(self.first)(x))


class TestCheckpoint:
    """Layers inside of jax.checkpoint are compared."""

    @pytest.mark.parametrize("library", ["linen", "equinox"])
    def test_right_and_wrong(self, library: str) -> None:
        def result(scale: float) -> Result:
            theirs = in_torch(
                lambda self, x: self.last(self.first(x)), first=nn.Linear(8, 6), last=nn.Linear(6, 3)
            )
            if library == "linen":
                module = LinenRemat(scale)
                return judged((module, module.init(KEY, FEATURES)), theirs, FEATURES)
            module = EquinoxCheckpoint(
                eqx.nn.Linear(8, 6, key=KEY), eqx.nn.Linear(6, 3, key=KEY), scale=scale
            )
            return judged(module, theirs, FEATURES[0], call_ours=vmapped)

        assert result(1.0).ok
        assert "after first, before last" in result(1.1).divergence.detail


def init_linear() -> Any:
    transformed = hk.transform(lambda x: hk.Linear(3)(x))
    return transformed, transformed.init(KEY, FEATURES)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Haiku(*init_linear(), {}),
            r"state must be given for .* and only for it; got Transformed with",
        ),
        (
            lambda: Linen(linen.Dense(3), {"kernel": jnp.ones(3)}),
            r"variables must be what module.init .* kernel",
        ),
        (
            lambda: Function(jnp.sum, {"a": {"b": 1.0}, "a/b": 2.0}),
            r"params must have arrays with unlike paths",
        ),
        (
            lambda: judged(linen.Dense(3), nn.Linear(8, 3), FEATURES),
            r"ours must be an nnx.Module; got a Dense; .*",
        ),
        (
            lambda: judged(Function(jnp.sum, {"eval": jnp.ones(2)}), nn.Linear(8, 3), FEATURES),
            r"array eval has the path of another one, or a name that nnx.Module uses",
        ),
        (
            lambda: judged(eqx.nn.Linear(8, 3, key=KEY), nn.Linear(8, 3), FEATURES, names={"up": ""}),
            r"not in the Flax model: up",
        ),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(linen.Dense(8, name="up")(scale * x)), None


class LinenScan(linen.Module):
    scales: tuple[float, ...]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scan = linen.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(name="layers")(x, jnp.asarray(self.scales, x.dtype))[0]


class EquinoxBlock(eqx.Module):
    up: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.up(x))


class EquinoxScan(eqx.Module):
    layers: EquinoxBlock
    scales: tuple[float, ...]

    def __init__(self, scales: tuple[float, ...]) -> None:
        make = eqx.filter_vmap(lambda key: EquinoxBlock(eqx.nn.Linear(8, 8, key=key)))
        self.layers, self.scales = make(jax.random.split(KEY, 3)), scales

    def __call__(self, x: jax.Array) -> jax.Array:
        arrays, rest = eqx.partition(self.layers, eqx.is_array)

        def step(x: jax.Array, one: Any) -> tuple[jax.Array, None]:
            return eqx.combine(one[0], rest)(one[1] * x), None

        return jax.lax.scan(step, x, (arrays, jnp.asarray(self.scales, x.dtype)))[0]


class FlaxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.up(x))


class FlaxScan(nnx.Module):
    def __init__(self, scales: tuple[float, ...]) -> None:
        make = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: FlaxBlock(rngs), in_axes=0, out_axes=0))
        self.layers, self.scales = make(nnx.Rngs(0)), scales

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(0, nnx.Carry, 0), out_axes=nnx.Carry)
        def run(layer: FlaxBlock, x: jax.Array, scale: jax.Array) -> jax.Array:
            return layer(scale * x)

        return run(self.layers, x, jnp.asarray(self.scales, x.dtype))


class TestStackedLayers:
    """Every layer of a scan over stacked weights has a place of its own."""

    @pytest.mark.parametrize("library", ["linen", "equinox", "nnx"])
    def test_right_and_wrong(self, library: str) -> None:
        def result(*scales: float) -> Result:
            block = lambda: in_torch(lambda self, x: self.up(x).tanh(), up=nn.Linear(8, 8))  # noqa: E731
            theirs = in_torch(
                lambda self, x: self.layers[2](self.layers[1](self.layers[0](x))),
                layers=nn.ModuleList([block(), block(), block()]),
            )
            if library == "linen":
                module = LinenScan(scales)
                return judged((module, module.init(KEY, FEATURES)), theirs, FEATURES)
            if library == "equinox":
                return judged(EquinoxScan(scales), theirs, FEATURES[0], call_ours=vmapped)
            return judged(FlaxScan(scales), theirs, FEATURES)

        right = result(1.0, 1.0, 1.0)
        assert right.ok, (right.divergence, right.reason)
        assert {check.name for check in right.layers} >= {
            f"layers.{i}{end}" for i in range(3) for end in ("", ".up")
        }
        wrong = result(1.0, 1.1, 1.0)
        assert wrong.divergence is not None
        assert wrong.divergence.layer in ("layers.1", "(model)")
        assert "layers.1" in f"{wrong.divergence.layer} {wrong.divergence.detail}"


def test_grouped_transposed_convolution_of_equinox() -> None:
    ours = eqx.nn.ConvTranspose1d(4, 6, 3, groups=2, key=KEY)
    assert judged(ours, nn.ConvTranspose1d(4, 6, 3, groups=2), normal(2, 4, 5), call_ours=vmapped).ok
    wrong = eqx.nn.ConvTranspose1d(4, 6, 3, groups=2, padding=1, output_padding=0, key=KEY)
    theirs = nn.ConvTranspose1d(4, 6, 3, groups=2)
    assert judged(wrong, theirs, normal(2, 4, 5), call_ours=vmapped).verdict == "different"
