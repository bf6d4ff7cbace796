"""A Flax model's run, written to a folder. Needs no PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax import nnx

from jaxmodels.compare.adapters import as_nnx
from jaxmodels.compare.calls import PairError, call_model, failures_explained
from jaxmodels.compare.captures.files import Capture, Run, check_target, write_capture
from jaxmodels.compare.captures.options import (
    ADAMW,
    Batches,
    Inputs,
    Runs,
    cast,
    check_inputs,
    check_options,
    is_repeated,
    keeper,
    settings,
    versions,
)
from jaxmodels.compare.flax_calls import flax_events
from jaxmodels.compare.jax_types import coarser_operation
from jaxmodels.compare.outputs import ANY_AXES, mean_square, named_leaves
from jaxmodels.compare.precision import full_precision_in_jax, observe_jax
from jaxmodels.convert.table import Entry


def capture_jax(
    model: Any,
    inputs: Inputs,
    path: str | Path,
    *,
    name: str | None = None,
    dtypes: Sequence[str] = ("float32", "float64"),
    call: Callable[..., Any] = call_model,
    loss: Callable[..., Any] | None = None,
    batches: Batches | None = None,
    steps: int = 3,
    learning_rate: float = 1e-3,
    full_precision: bool = True,
    limit: int | None = None,
    table: Sequence[Entry] | None = None,
    output_axes: str | Mapping[str, str] = ANY_AXES,
) -> Path:
    """Runs a Flax model in evaluation mode on JAX's default device, and writes what it computed.

    Args:
      model: with PyTorch's weights in it: an `nnx.Module`, or whatever `Pair.ours` takes. It is copied, not changed.
      inputs: arrays by name, in the model's own layout.
      path: the folder, new or an earlier capture.
      name: what reports call the pair; by default the model's class.
      dtypes: the types in which it runs: "float64", "float32", "bfloat16". From float32 and float64 the noise of
        float32 is measured, from all three that of bfloat16 and TF32. On a TPU leave float64 out: it has none.
      call: runs the model on the inputs; by default they are passed by name, or in the order of the dict.
      loss: a scalar from the model and the inputs; by default the mean of the squared outputs.
      batches: the inputs of each optimiser step, counted from 0; by default `inputs` at every step.
      steps: how many of AdamW follow the first gradient; with 0 the weights stay.
      learning_rate: of these steps.
      full_precision: whether float32 products are computed with all digits. False keeps the settings in force,
        such as TF32 on a GPU and bfloat16 on a TPU; the capture says which products they make.
      limit: tensors of more numbers are kept as projections; see `jaxmodels.compare.projection`.
      table: which parameters and modules are which of the PyTorch model's, where that is known here.
      output_axes: einops patterns from PyTorch's outputs to JAX's, as `Pair` takes them.

    Returns:
      The folder.

    Raises:
      ValueError: a wrong argument, or a model that fails or is random.
      OSError: the folder cannot be written.
    """
    path = Path(path)
    kind = type(model).__name__
    model = as_nnx(model)
    if not isinstance(model, nnx.Module):
        raise ValueError(
            f"model must be an nnx.Module, or of another library as jaxmodels.compare.Pair takes it; got a {kind}"
        )
    check_inputs(inputs)
    check_options(dtypes, steps, limit)
    check_target(path)
    side = _JaxRuns(
        call=call,
        loss=loss,
        batches=batches or (lambda step: inputs),
        steps=steps,
        learning_rate=learning_rate,
        keep=keeper(limit),
    )
    device = jax.devices()[0]
    capture = Capture(
        name=name or kind,
        side="jax",
        device=device.device_kind,
        versions=versions("jax", "jaxlib", "flax", "optax"),
        settings=settings(steps, learning_rate, limit, output_axes),
        inputs={key: np.asarray(value) for key, value in inputs.items()},
        modules={
            _dotted(path): f"{type(m).__module__}.{type(m).__name__}" for path, m in nnx.iter_modules(model)
        },
        learned=[_dotted(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))],
        table=None if table is None else list(table),
    )
    with full_precision_in_jax() if full_precision else nullcontext():
        for dtype in dtypes:
            with jax.enable_x64(True) if dtype == "float64" else nullcontext():
                capture.runs[dtype] = side.run(model, capture.inputs, dtype)
    write_capture(capture, path)
    return path


class _JaxRuns(Runs):
    """Runs a model in one type after another."""

    def run(self, model: nnx.Module, inputs: Inputs, dtype: str) -> Run:
        model = _ready(model, dtype)
        run = Run(dtype=dtype, products=_products() if dtype == "float32" else {})
        run.weights = {
            _dotted(path): self.keep(np.asarray(variable.get_value()))
            for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
            if isinstance(variable.get_value(), jax.Array)
        }
        run.outputs = {key: self.keep(value) for key, value in self._outputs(model, inputs, dtype).items()}
        if dtype == "float64":
            run.coarser = self._coarser(model, inputs)
        self._record(model, inputs, run, dtype)
        self._train(model, run, dtype)
        return run

    def _outputs(self, model: nnx.Module, inputs: Inputs, dtype: str) -> dict[str, np.ndarray]:
        """What the model returns, compiled as users run it; a second run with other random keys must agree."""
        graphdef, state = nnx.split(model)
        arrays = _on_device(inputs, dtype)
        names: list[str] = []

        @jax.jit
        def run(state, values):
            leaves = named_leaves(
                self.call(nnx.merge(graphdef, state), dict(zip(arrays, values, strict=True)))
            )
            names[:] = leaves
            return [jnp.asarray(leaf) for leaf in leaves.values()]

        with failures_explained(
            f"the JAX model, run in {dtype},", "its inputs are those that are given, passed by call"
        ):
            values = [
                list(map(np.asarray, run(part, list(arrays.values()))))
                for part in (state, _with_other_keys(state))
            ]
        first, again = (dict(zip(names, part, strict=True)) for part in values)
        if not is_repeated(first, again, dtype):
            raise PairError(
                "the JAX model returns other values when it runs with other random keys, although it is in evaluation "
                "mode: a random function that does not ask for `deterministic`; switch it off first"
            )
        return first

    def _coarser(self, model: nnx.Module, inputs: Inputs) -> tuple[str, str] | None:
        graphdef, state = nnx.split(model)
        arrays = _on_device(inputs, "float64")

        def run(state: nnx.State, values: list[jax.Array]) -> Any:
            result = self.call(nnx.merge(graphdef, state), dict(zip(arrays, values, strict=True)))
            return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]

        return coarser_operation(jax.make_jaxpr(run)(state, list(arrays.values())).jaxpr)

    def _record(self, model: nnx.Module, inputs: Inputs, run: Run, dtype: str) -> None:
        """Adds every call of a module; a note where calls cannot be recorded."""
        arrays = _on_device(inputs, dtype)
        try:
            with failures_explained("recording the calls in JAX", "calls inside of vmap cannot be recorded"):
                _, events = flax_events(model, lambda model: self.call(model, arrays))
        except PairError as error:
            run.notes.append(f"no layer was captured: {error}")
            return
        run.events = [event._replace(arrays=tuple(map(self.keep, event.arrays))) for event in events.values()]

    def _train(self, model: nnx.Module, run: Run, dtype: str) -> None:
        """Adds losses, the first gradient and the weights after the steps.

        AdamW computes in float64, so that only the model's own rounding is seen.
        """
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        names: list[str] = []  # of the inputs: JAX sorts the keys of a dict

        @jax.jit
        def differentiate(params, values):
            inputs = dict(zip(names, values, strict=True))
            merged = lambda params: nnx.merge(graphdef, params, rest, copy=True)  # noqa: E731
            return jax.value_and_grad(lambda params: self._loss(merged(params), inputs))(params)

        optimizer = optax.adamw(self.learning_rate, **ADAMW)
        with jax.enable_x64(True):
            masters = jax.tree.map(_as_float64, params)
            moments = optimizer.init(masters)
        for step in range(max(self.steps, 1)):
            batch = _on_device(self.batches(step), dtype)
            names[:] = batch
            try:
                loss, gradients = differentiate(params, list(batch.values()))
            except _NoLossError:
                run.notes.append("no output is floating-point, so no gradient was captured; loss gives one")
                return
            run.losses.append(float(loss))
            if step == 0:
                run.gradients = self._named(gradients)
            if self.steps == 0:
                return
            with jax.enable_x64(True):
                changes, moments = optimizer.update(jax.tree.map(_as_float64, gradients), moments, masters)
                masters = optax.apply_updates(masters, changes)
                params = jax.tree.map(lambda x, master: master.astype(x.dtype), params, masters)
        run.weights_after = self._named(params)

    def _loss(self, model: nnx.Module, inputs: dict[str, jax.Array]) -> jax.Array:
        with failures_explained(
            "the loss in JAX", "loss gets the model and the inputs, and returns a scalar"
        ):
            loss = mean_square(self.call(model, inputs)) if self.loss is None else self.loss(model, inputs)
        if self.loss is None and not isinstance(loss, jax.Array):
            raise _NoLossError
        if jnp.size(loss) != 1:
            raise PairError(f"loss must return a scalar; got {jnp.shape(loss)}: take a mean or a sum")
        return jnp.reshape(loss, ())

    def _named(self, state: nnx.State) -> dict[str, Any]:
        return {
            _dotted(path): self.keep(np.asarray(variable.get_value()))
            for path, variable in nnx.to_flat_state(state)
        }


class _NoLossError(Exception):
    """The model has no floating-point output, and no loss was given."""


def _ready(model: nnx.Module, dtype: str) -> nnx.Module:
    """A copy in evaluation mode with its floating-point variables in this type."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    model = nnx.view(nnx.clone(model), deterministic=True, use_running_average=True, raise_if_not_found=False)
    model.eval()  # also modules with such an attribute and no view of their own

    def converted(value: Any) -> Any:
        if jnp.issubdtype(value.dtype, jnp.floating):
            return jnp.asarray(value).astype(kind)
        return jnp.asarray(value) if isinstance(value, np.ndarray) else value

    nnx.update(model, jax.tree.map(converted, nnx.state(model)))
    return model


def _with_other_keys(state: nnx.State) -> nnx.State:
    """The same variables but for the keys of random numbers."""
    return jax.tree.map(
        lambda x: jax.random.fold_in(x, 1) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state
    )


def _on_device(inputs: Inputs, dtype: str) -> dict[str, jax.Array]:
    return {key: jnp.asarray(cast(np.asarray(value), dtype)) for key, value in inputs.items()}


def _as_float64(value: Any) -> jax.Array:
    return jnp.asarray(np.asarray(value), jnp.float64)


def _products() -> dict[str, float]:
    return {kind: observe_jax(kind)[1] for kind in ("matmul", "convolution")}


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))
