"""Builds the three models of a row with shared weights, and computes their outputs and gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxmodels as jm
from jaxmodels.convert.torch_io import to_numpy, to_torch
from parity_tests.cases.case import Case
from tests.quick_compilation import AS_USERS as AS_USERS


TOLERANCE = {np.dtype("float64"): 1e-10, np.dtype("float32"): 1e-5}


@dataclass
class Triple:
    """The three models of a row and its inputs (PyTorch layout, in the row's dtype)."""

    case: Case
    ours: nnx.Module
    reference: torch.nn.Module
    published: torch.nn.Module | None
    inputs: dict[str, np.ndarray]

    def run_torch(self, model: torch.nn.Module, *, published: bool = False):
        """Outputs, gradients of parameters and gradients of floating-point inputs of one PyTorch model."""
        inputs = {k: torch.from_numpy(v.copy()) for k, v in self.inputs.items()}
        floating = {k: v.requires_grad_() for k, v in inputs.items() if v.is_floating_point()}
        call = self.case.call_published if published and self.case.call_published else self.case.call_torch
        model.zero_grad(set_to_none=True)
        outputs = as_tuple(call(model, inputs))
        loss = sum(
            (o * torch.from_numpy(weights(o.shape, o.dtype))).sum() for o in outputs if o.is_floating_point()
        )
        if getattr(loss, "requires_grad", False):
            loss.backward()
        # The gradient of an unused parameter or input is None in PyTorch and zero in JAX.
        gradients = {
            k: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
            for k, p in model.named_parameters()
        }
        input_gradients = {
            k: (torch.zeros_like(v) if v.grad is None else v.grad).numpy() for k, v in floating.items()
        }
        return [o.detach().numpy() for o in outputs], gradients, input_gradients

    def run_jax(self):
        """The same of the Flax model; gradients have PyTorch's keys and layout."""
        inputs = {k: jnp.asarray(v) for k, v in self.case.to_jax(self.inputs).items()}
        floating = {k: v for k, v in inputs.items() if jnp.issubdtype(v.dtype, jnp.floating)}
        graphdef, params, rest = nnx.split(self.ours, nnx.Param, ...)

        def loss(params, floating):
            outputs = as_tuple(self.case.call_jax(nnx.merge(graphdef, params, rest), {**inputs, **floating}))
            total = sum(
                jnp.sum(o * jnp.asarray(weights(o.shape, o.dtype)))
                for o in outputs
                if jnp.issubdtype(o.dtype, jnp.floating)
            )
            return total, outputs

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (_, outputs), (gradients, input_gradients) = run(params, floating)
        gradients = jm.to_state_dict(nnx.merge(graphdef, gradients, rest))
        return (
            [np.asarray(o) for o in outputs],
            gradients,
            {k: np.asarray(v) for k, v in input_gradients.items()},
        )


def build_triple(case: Case, dtype: np.dtype) -> Triple:
    torch.manual_seed(0)
    torch_dtype = {"float64": torch.float64, "float32": torch.float32}[dtype.name]
    torch.set_default_dtype(torch_dtype)  # some packages build tables in the default dtype
    try:
        reference = case.reference().to(torch_dtype).eval()
        with torch.no_grad():  # with unit scales and zero biases some mistakes have no effect
            for p in reference.parameters():
                p.add_(case.spread * torch.randn_like(p))
        published = None
        if case.published is not None:
            published = case.published().to(torch_dtype).eval()
            published.load_state_dict(reference.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)
    ours = jm.load_state_dict(nnx.eval_shape(case.jax), reference.state_dict())
    rng = np.random.default_rng(0)
    inputs = {
        k: v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v for k, v in case.inputs(rng).items()
    }
    return Triple(case, ours, reference, published, inputs)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Asserts |actual - expected| ≤ tolerance · max(1, max |expected|); the message names the worst element."""
    assert actual.shape == expected.shape, f"{name}: {actual.shape} against {expected.shape}"
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} against {expected.dtype}"
    if actual.size == 0:
        return
    assert np.isfinite(actual).all() == np.isfinite(expected).all(), f"{name}: not finite on one side only"
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    scale = max(1.0, float(np.abs(expected).max()))
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    assert difference.max() <= tolerance * scale, (
        f"{name}: {actual[worst]!r} against {expected[worst]!r} at {tuple(map(int, worst))}; "
        f"difference {difference.max():.2e}, allowed {tolerance * scale:.2e}"
    )


def weights(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Fixed weights that turn an output into a scalar; with equal ones, errors could cancel."""
    size = int(np.prod(shape))
    name = str(dtype).removeprefix("torch.")
    return (np.cos(np.arange(size)) / max(size, 1) ** 0.5).reshape(shape).astype(name)


def as_tuple(outputs: Any) -> tuple:
    return tuple(outputs) if isinstance(outputs, tuple) else (outputs,)


def compare_gradients(
    actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float
) -> None:
    """Compares every parameter's gradient; the tolerance is relative to the model's largest gradient."""
    scale = max([1.0, *(float(np.abs(g).max()) for g in expected.values() if g.size)])
    for key, gradient in expected.items():
        assert_close(actual[key], gradient, tolerance * scale, f"gradient of {key}")


def assert_layout_matches(reference: torch.nn.Module, published: torch.nn.Module) -> None:
    """Asserts equal keys in equal order, shapes, dtypes and buffers; strict loading works both ways."""

    def layout(model: torch.nn.Module) -> list[tuple]:
        return [(k, tuple(v.shape), v.dtype) for k, v in model.state_dict().items()]

    assert layout(reference) == layout(published)
    assert [k for k, _ in reference.named_parameters()] == [k for k, _ in published.named_parameters()]
    assert {k for k, _ in reference.named_buffers()} == {k for k, _ in published.named_buffers()}
    reference.load_state_dict(published.state_dict(), strict=True)
    published.load_state_dict(reference.state_dict(), strict=True)


def assert_round_trip(build: Callable[[], nnx.Module], published: torch.nn.Module) -> None:
    """Asserts that PyTorch -> JAX -> PyTorch keeps keys, order, types and bits, for four floating-point types."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        state_dict = {k: v.clone() for k, v in published.to(dtype).state_dict().items()}
        back = jm.to_state_dict(jm.load_state_dict(nnx.eval_shape(build), state_dict))
        assert list(back) == list(state_dict)
        for key, tensor in state_dict.items():
            expected = to_numpy(tensor)
            assert back[key].dtype == expected.dtype, key
            assert back[key].shape == expected.shape, key
            assert back[key].tobytes() == expected.tobytes(), key
        published.load_state_dict({k: to_torch(v) for k, v in back.items()}, strict=True)
    published.float()


def assert_init_matches(
    ours: Callable[[int], nnx.Module], theirs: Callable[[], torch.nn.Module], *, seeds: int = 8
) -> None:
    """Asserts that fresh parameters have the mean, standard deviation and bounds of the package's."""
    our_states = [jm.to_state_dict(ours(seed)) for seed in range(seeds)]
    torch.manual_seed(0)
    their_states = [{k: to_numpy(v) for k, v in theirs().state_dict().items()} for _ in range(seeds)]
    assert list(our_states[0]) == list(their_states[0])
    for key in our_states[0]:
        a = np.stack([s[key] for s in our_states]).astype(np.float64)
        b = np.stack([s[key] for s in their_states]).astype(np.float64)
        deviation = b.std()
        if deviation < 1e-7:  # constants
            np.testing.assert_array_equal(a, b, err_msg=key)
            continue
        # Six standard errors of a mean and of a standard deviation.
        error = 6 * deviation / a.size**0.5
        assert abs(a.mean() - b.mean()) < 2 * error, f"{key}: mean {a.mean():.4g} against {b.mean():.4g}"
        assert abs(a.std() - deviation) < 2 * error, f"{key}: std {a.std():.4g} against {deviation:.4g}"
        if a.size >= 400:  # enough to tell a uniform distribution (bounded) from a normal one
            ratio_ours, ratio_theirs = np.abs(a).max() / deviation, np.abs(b).max() / deviation
            uniform = ratio_theirs < 1.8
            assert (ratio_ours < 1.8) == uniform, (
                f"{key}: bounds {ratio_ours:.3g}σ against {ratio_theirs:.3g}σ"
            )
