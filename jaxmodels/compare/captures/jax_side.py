"""A JAX model's run, written to a folder. Needs no PyTorch."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax import nnx

from jaxmodels.compare.adapters import as_nnx, call_bound, refusal_of
from jaxmodels.compare.calls import PairError, failures_explained
from jaxmodels.compare.captures.files import Capture, Run, check_target, read_capture, write_capture
from jaxmodels.compare.captures.options import (
    Inputs,
    JaxOptions,
    batch_of,
    cast,
    check_inputs,
    dropout_note,
    is_repeated,
    options_from,
    require_outputs,
    versions,
)
from jaxmodels.compare.captures.routes import Indices, at, repeated, routes_of
from jaxmodels.compare.flax_calls import flax_events
from jaxmodels.compare.flax_mode import without_flax_dropout
from jaxmodels.compare.jax_types import coarser_operation
from jaxmodels.compare.optax_optimizers import decay_mask, optax_optimizer
from jaxmodels.compare.outputs import mean_square, named_leaves
from jaxmodels.compare.precision import full_precision_in_jax, observe_jax
from jaxmodels.convert.table import Parameter


# What is neither learned nor random: statistics, caches, counters.
STATE = nnx.All(nnx.Not(nnx.Param), nnx.Not(nnx.RngState))
Arrays = dict[str, Any]


def capture_jax(model: Any, inputs: Inputs, path: str | Path, **options: Any) -> Path:
    """Runs a JAX model on JAX's default device, and writes what it computed.

    Args:
      model: with PyTorch's weights in it: an `nnx.Module`, or whatever `Pair.ours` takes. It is copied, not changed.
      inputs: arrays by name, in the model's own layout, or in that from which `to_ours` makes it.
      path: the folder, new or an earlier capture.
      options: the fields of `jaxmodels.compare.captures.JaxOptions`.

    Returns:
      The folder.

    Raises:
      ValueError: a wrong argument, or a model that fails or is random.
      OSError: the folder cannot be written.
    """
    path, kind = Path(path), type(model).__name__
    model = as_nnx(model)
    if not isinstance(model, nnx.Module):
        raise ValueError(refusal_of(model, "model"))
    check_inputs(inputs)
    chosen = options_from(JaxOptions, options, "capture_jax")
    check_target(path)
    source = None if chosen.routing_from is None else read_capture(chosen.routing_from)
    capture = Capture(
        name=chosen.name or kind,
        side="jax",
        device=jax.devices()[0].device_kind,
        versions=versions("jax", "jaxlib", "flax", "optax"),
        settings={**chosen.settings, "repeats_routing": source is not None},
        inputs={key: np.asarray(value) for key, value in inputs.items()},
        modules={
            _dotted(path): f"{type(m).__module__}.{type(m).__name__}" for path, m in nnx.iter_modules(model)
        },
        learned=[_dotted(path) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))],
        table=None if chosen.table is None else list(chosen.table),
    )
    choices: dict[str, Indices] = {}  # of the first run; the others repeat them
    if source is not None:
        choices = _choices_in(source, chosen)
    with full_precision_in_jax() if chosen.full_precision else nullcontext():
        for dtype in chosen.dtypes:
            with jax.enable_x64(True) if dtype == "float64" else nullcontext():
                capture.runs[dtype] = _JaxRun(model, capture, chosen, dtype, choices).complete()
    write_capture(capture, path)
    return path


def _choices_in(source: Capture, options: JaxOptions) -> dict[str, Indices]:
    """What the routers of a capture chose, by pass.

    Raises:
      ValueError: it has other routers.
    """
    names = source.settings["routers"]
    if names != list(options.routers):
        raise ValueError(
            f"routing_from must be a capture with the routers {', '.join(options.routers)}; {source.described} has "
            f"{', '.join(names) or 'none'}"
        )
    routes = next(iter(source.runs.values())).routing
    passes = dict.fromkeys(key.partition("/")[0] for key in routes)
    return {where: repeated(at(routes, where), len(names)) for where in passes}


class _JaxRun:
    """A copy of a model in one type, and what it computes."""

    def __init__(
        self,
        model: nnx.Module,
        capture: Capture,
        options: JaxOptions,
        dtype: str,
        choices: dict[str, Indices],
    ) -> None:
        self.inputs, self.options, self.dtype = capture.inputs, options, dtype
        self.choices, self.keep = choices, options.keep
        self.run = Run(dtype=dtype, products=_products() if dtype == "float32" else {})
        self.model = _ready(model, dtype, training=options.mode == "train")
        if options.mode == "train":
            modules = [(_dotted(path), module) for path, module in nnx.iter_modules(self.model)]
            self.run.notes += dropout_note([path for path, module in modules if without_flax_dropout(module)])
        self.names: list[str] = []  # of the inputs: JAX sorts the keys of a dict

    def complete(self) -> Run:
        """The forward pass and the training steps."""
        run = self.run
        run.weights = self._named(nnx.state(self.model, nnx.Not(nnx.RngState)))
        values = self._values(self.inputs)
        self.route = self._route("forward", values)
        outputs, statistics = self._outputs(values)
        run.outputs = {key: self.keep(value) for key, value in outputs.items()}
        if self.options.mode == "train":
            run.statistics = self._named(statistics)
        if self.dtype == "float64":
            run.coarser = self._coarser(values)
        self._record(values)
        self._train()
        return run

    def _call(self, model: nnx.Module, values: Sequence[Any], route: Mapping[str, Any]) -> Any:
        return call_bound(self.options.call, model, dict(zip(self.names, values, strict=True)), **route)

    def _outputs(self, values: Sequence[Any]) -> tuple[dict[str, np.ndarray], nnx.State]:
        """What the model returns and its state, compiled as users run it.

        Raises:
          PairError: it fails, or a second run with other random keys does not agree.
        """
        graphdef, state = nnx.split(self.model)
        names: list[str] = []

        @jax.jit
        def run(state, values, route):
            model = nnx.merge(graphdef, state)
            leaves = named_leaves(self._call(model, values, route))
            names[:] = leaves
            return [jnp.asarray(leaf) for leaf in leaves.values()], nnx.state(model, STATE)

        with failures_explained(
            f"the JAX model, run in {self.dtype},", "its inputs are those that are given, passed by call"
        ):
            runs = [run(part, values, self.route) for part in (state, _with_other_keys(state))]
        require_outputs(dict.fromkeys(names))
        first, again = (dict(zip(names, map(np.asarray, leaves), strict=True)) for leaves, _ in runs)
        if not is_repeated(first, again, self.dtype):
            mode = "in evaluation mode" if self.options.mode == "eval" else "without dropout"
            raise PairError(
                "the JAX model returns other values when it runs with other random keys, although it is "
                f"{mode}: a random function that does not ask for `deterministic`; switch it off first"
            )
        return first, runs[0][1]

    def _coarser(self, values: Sequence[Any]) -> tuple[str, str] | None:
        graphdef, state = nnx.split(self.model)

        def run(state: nnx.State, values: Sequence[Any]) -> Any:
            result = self._call(nnx.merge(graphdef, state), values, self.route)
            return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]

        return coarser_operation(jax.make_jaxpr(run)(state, values).jaxpr)

    def _record(self, values: Sequence[Any]) -> None:
        """Adds every call of a module; a note where calls cannot be recorded."""
        try:
            with failures_explained("recording the calls in JAX", "calls inside of vmap cannot be recorded"):
                _, events = flax_events(
                    nnx.clone(self.model), lambda model: self._call(model, values, self.route)
                )
        except PairError as error:
            self.run.notes.append(f"no layer was captured: {error}")
            return
        self.run.events = [
            event._replace(arrays=tuple(map(self.keep, event.arrays))) for event in events.values()
        ]

    def _route(self, where: str, values: Sequence[Any]) -> dict[str, Any]:
        """What the routers choose, or are to repeat, as an argument of the model; the choice is kept with the run."""
        options = self.options
        if options.routing is None:
            return {}
        inputs = dict(zip(self.names, values, strict=True))
        with failures_explained("routing", "it gets the model and the inputs"):
            routed = call_bound(options.routing, self.model, inputs)
        found = routes_of(routed, options.routers, np.asarray)
        self.run.routing |= {f"{where}/{key}": value for key, value in found.items()}
        indices = self.choices.setdefault(where, repeated(found, len(options.routers)))
        return {"routing": [None if one is None else jnp.asarray(one) for one in indices]}

    def _train(self) -> None:
        """Adds losses, the first gradient and the weights after the steps.

        The optimiser computes in float64, so that only the model's own rounding is seen.
        """
        run, steps = self.run, self.options.steps
        graphdef, params, rest = nnx.split(self.model, nnx.Param, ...)

        @jax.jit
        def differentiate(params, values, route):
            merged = lambda params: nnx.merge(graphdef, params, rest, copy=True)  # noqa: E731
            return jax.value_and_grad(lambda params: self._loss(merged(params), values, route))(params)

        optimizer = self._optimizer()
        with jax.enable_x64(True):
            masters = jax.tree.map(_as_float64, params)
            moments = optimizer.init(masters)
        for step in range(max(steps, 1)):
            values = self._values(batch_of(self.options, self.inputs, step))
            route = self._route(f"step {step + 1}", values)
            try:
                loss, gradients = differentiate(params, values, route)
            except _NoLossError:
                run.notes.append("no output is floating-point, so no gradient was captured; loss gives one")
                return
            run.losses.append(float(loss))
            if step == 0:
                run.gradients = self._named(gradients)
            if steps == 0:
                return
            with jax.enable_x64(True):
                changes, moments = optimizer.update(jax.tree.map(_as_float64, gradients), moments, masters)
                masters = optax.apply_updates(masters, changes)
                params = jax.tree.map(lambda x, master: master.astype(x.dtype), params, masters)
                nnx.update(self.model, params)  # for the routers
        run.weights_after = self._named(params)

    def _optimizer(self) -> optax.GradientTransformation:
        """The optimiser; a mask by name gets PyTorch's names where a table tells them."""
        learned = [_dotted(path) for path, _ in nnx.to_flat_state(nnx.state(self.model, nnx.Param))]
        table = {e.ours: e.theirs for e in self.options.table or () if isinstance(e, Parameter)}
        training = self.options.optimizer
        with failures_explained(
            "the optimiser in optax", "optimizer_ours is an optax.GradientTransformation"
        ):
            return optax_optimizer(
                training, decay_mask(training, {path: table.get(path, path) for path in learned})
            )

    def _loss(self, model: nnx.Module, values: Sequence[Any], route: Mapping[str, Any]) -> jax.Array:
        own = self.options.loss
        with failures_explained(
            "the loss in JAX", "loss gets the model and the inputs, and returns a scalar"
        ):
            if own is None:
                loss = mean_square(self._call(model, values, route))
            else:
                loss = call_bound(own, model, dict(zip(self.names, values, strict=True)), **route)
        if own is None and not isinstance(loss, jax.Array):
            raise _NoLossError
        if jnp.size(loss) != 1:
            raise PairError(f"loss must return a scalar; got {jnp.shape(loss)}: take a mean or a sum")
        return jnp.reshape(loss, ())

    def _values(self, inputs: Inputs) -> list[jax.Array]:
        """The inputs in the type and layout of the model; `self.names` are theirs."""
        arrays = {key: cast(np.asarray(value), self.dtype) for key, value in inputs.items()}
        with failures_explained("to_ours", "it gets the inputs and returns the model's"):
            given = {key: jnp.asarray(value) for key, value in self.options.to_ours(arrays).items()}
        self.names[:] = given
        return list(given.values())

    def _named(self, state: nnx.State) -> dict[str, Any]:
        return {
            _dotted(path): self.keep(np.asarray(variable.get_value()))
            for path, variable in nnx.to_flat_state(state)
            if isinstance(variable.get_value(), jax.Array)
        }


class _NoLossError(Exception):
    """The model has no floating-point output, and no loss was given."""


def _ready(model: nnx.Module, dtype: str, *, training: bool) -> nnx.Module:
    """A copy in evaluation or training mode with its floating-point variables in this type."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    model = nnx.view(
        nnx.clone(model),
        deterministic=not training,
        use_running_average=not training,
        raise_if_not_found=False,
    )
    # Also modules with such an attribute and no view of their own.
    model.train() if training else model.eval()

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


def _as_float64(value: Any) -> jax.Array:
    return jnp.asarray(np.asarray(value), jnp.float64)


def _products() -> dict[str, float]:
    return {kind: observe_jax(kind)[1] for kind in ("matmul", "convolution")}


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))
