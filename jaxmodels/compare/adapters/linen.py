"""Linen modules with their variables."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
from flax import linen, nnx

from jaxmodels.compare.adapters.layouts import conv_axes, dense_axes, is_conv, is_transposed, merged_bias
from jaxmodels.compare.adapters.protocol import (
    Adapted,
    Adapter,
    Attention,
    Cell,
    Layout,
    Place,
    arrays_at,
    dotted,
    store_changes,
    variable_of,
    with_signature,
)
from jaxmodels.compare.adapters.recorder import Recorder


NAMES = {"scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
STANDARD = (
    linen.Dense,
    linen.DenseGeneral,
    linen.Conv,
    linen.ConvTranspose,
    linen.Embed,
    linen.LayerNorm,
    linen.RMSNorm,
    linen.GroupNorm,
    linen.InstanceNorm,
    linen.BatchNorm,
)
# Collections whose variables lie at the paths of their modules; those of others lie below the collection's name.
COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


def _gates(source: str, gates: str, name: str = "kernel") -> tuple[str, ...]:
    """The variables of a cell's gates: "ii.kernel", "if.kernel", …"""
    return tuple(f"{source}{gate}.{name}" for gate in gates)


class Linen(Adapter):
    """A Linen module and its variables, as the JAX side of a pair. In training mode, `linen.Dropout` drops nothing.

    Args:
      module: the module, unbound.
      variables: what `module.init` returns. `variables["params"]["Dense_0"]["kernel"]` has the path "Dense_0.kernel".
      rngs: keys by name, for models that draw random numbers.
      options: keyword arguments of every call, such as `train=False`, and `method=`, as `module.apply` takes them.
    """

    library = "Linen"
    attention = Attention(
        ("query", "key", "value", "out"),
        "kernel",
        "bias",
        "(h d) i -> i h d",
        "(h d) -> h d",
        "o (h d) -> h d o",
    )
    cells = (
        Cell("LSTM", _gates("i", "ifgo"), _gates("h", "ifgo"), _gates("h", "ifgo", "bias")),
        Cell("GRU", _gates("i", "rzn"), _gates("h", "rzn"), _gates("i", "rzn", "bias"), "hn.bias"),
        Cell("RNN", ("i.kernel",), ("h.kernel",), ("i.bias",)),
    )

    def __init__(
        self,
        module: linen.Module,
        variables: Mapping[str, Any],
        *,
        rngs: Mapping[str, jax.Array] | None = None,
        **options: Any,
    ) -> None:
        if "params" not in variables and "batch_stats" not in variables and variables:
            raise ValueError(
                "variables must be what module.init returns, such as {'params': …}; got the collections "
                f"{', '.join(map(str, variables))}"
            )
        self.module, self.rngs, self.options = module, dict(rngs or {}), options
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(linen.meta.unbox(dict(variables)))
        self.arrays = {dotted(path): leaf for path, leaf in leaves}
        self.state = [str(name) for name in variables if name != "params"]
        self.kinds: dict[str, type] = {}

    def variables(self) -> dict[str, nnx.Variable]:
        found = {
            _shown(path): variable_of(leaf, COLLECTIONS.get(path.partition(".")[0], nnx.Variable))
            for path, leaf in self.arrays.items()
        }
        return found | {f"rngs.{name}": nnx.RngKey(key, tag=name) for name, key in self.rngs.items()}

    def bind(self, model: Adapted) -> Any:
        def apply(*args: Any, **kwargs: Any) -> Any:
            values = arrays_at(model, map(_shown, self.arrays))
            keys = dict(zip(self.rngs, arrays_at(model, [f"rngs.{name}" for name in self.rngs]), strict=True))
            without_dropout = linen.intercept_methods(_identity_of_dropout)
            # Some models use the statistics of the batch wherever they could store them.
            kept = ("batch_stats",) if model._inference else ()
            mutable = [name for name in self.state if name not in kept]
            with without_dropout if model._inference is False else nullcontext():
                result = self.module.apply(
                    jax.tree.unflatten(self.structure, values),
                    *args,
                    rngs=keys or None,
                    mutable=mutable or False,
                    **{**self.options, **kwargs},
                )
            if not mutable:
                return result
            output, state = result
            leaves, _ = jax.tree_util.tree_flatten_with_path(state)
            after = {_shown(dotted(path)): leaf for path, leaf in leaves}
            store_changes(model, dict(zip(map(_shown, self.arrays), values, strict=True)), after)
            return output

        method = self.options.get("method") or "__call__"
        return with_signature(apply, getattr(self.module, method) if isinstance(method, str) else method)

    @contextmanager
    def recording(self, recorder: Recorder) -> Generator[None]:
        def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return function(*args, **kwargs)
            path = ".".join(context.module.path)
            self.kinds[path] = type(context.module)
            return recorder.run(path, function, args, kwargs)

        with linen.intercept_methods(intercept):
            yield

    def is_standard(self, path: str) -> bool:
        return issubclass(self.kinds.get(path, object), STANDARD)

    def source(self, path: str) -> Any:
        return self.kinds.get(path) if path else type(self.module)

    def names_in_torch(self, name: str) -> Iterable[str]:
        """A list's modules are called layers_0 here; in PyTorch layers.0, or 0 in a Sequential."""
        stem, _, number = name.rpartition("_")
        return (name, f"{stem}.{number}", number) if stem and number.isdigit() else (name,)

    def layout(self, place: Place) -> Layout | None:
        rank = len(place.shape)
        if place.name == "kernel":
            if is_transposed(place.twin):
                # Linen's kernel runs the other way.
                return Layout("weight", conv_axes("i o", rank, "i o"), flip=rank - 2)
            if is_conv(place.twin) and rank > 2:
                return Layout("weight", conv_axes("o i", rank, "i o"))
            return Layout("weight", dense_axes(place, "weight"))
        if place.name == "bias":
            return Layout("bias", merged_bias(rank))
        return Layout(NAMES.get(place.name, place.name))


def _identity_of_dropout(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    is_dropout = isinstance(context.module, linen.Dropout) and context.method_name == "__call__"
    return (args or tuple(kwargs.values()))[0] if is_dropout else function(*args, **kwargs)


def _shown(path: str) -> str:
    """The path of a variable: that of its module, for the usual collections."""
    collection, _, rest = path.partition(".")
    return rest if collection in COLLECTIONS else path
