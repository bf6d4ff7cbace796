"""Both models ready to be compared: copies in both types, evaluation mode, the same weights, usable inputs."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx

from jaxmodels.compare.adapters import refusal_of
from jaxmodels.compare.calls import PairError, failures_explained
from jaxmodels.compare.divergence import MODEL
from jaxmodels.compare.finite import require_finite_inputs, require_finite_weights
from jaxmodels.compare.layouts import unequal_settings
from jaxmodels.compare.noise import DType, NoiseFloor
from jaxmodels.compare.pair import Inputs, Pair
from jaxmodels.compare.recurrent import fold_added_biases
from jaxmodels.compare.training_mode import replay_dropout
from jaxmodels.convert.core import fit, variable_at
from jaxmodels.convert.table import Entry, Parameter, Twin
from jaxmodels.convert.torch_io import to_numpy, to_torch


Models = Mapping[DType, torch.nn.Module]
Mode = Literal["eval", "train"]
MODES: tuple[Mode, Mode] = ("eval", "train")
# Weights "nearby" differ by this share of themselves: far more than rounding, far less than a step of training.
NEARBY_DISTANCE = 1e-3
COMPLEX = {"float32": np.complex64, "float64": np.complex128}


@dataclass(kw_only=True)
class Subject:
    """A pair that is ready to run.

    Attributes:
      pair: both models as they are compared: in the mode, with the same weights.
      models: PyTorch's model in both types; the compared one is `models[dtype]`.
      inputs: in the compared type.
      floor: the tolerances of the compared type.
      parameters: how many numbers the PyTorch model learns.
      mode: evaluation or training mode.
      routing_indices: what PyTorch's routers chose, where all runs must repeat it.
      notes: what the reader of the result should know.
      unjudged: reasons against a verdict that no single check has.
    """

    pair: Pair
    models: dict[DType, torch.nn.Module]
    inputs: dict[str, np.ndarray]
    floor: NoiseFloor
    parameters: int
    mode: Mode = "eval"
    routing_indices: list[np.ndarray | None] | None = None
    notes: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> DType:
        return self.floor.dtype


def prepare(pair: Pair, dtype: DType, coarser: str | None = None, *, mode: Mode = "eval") -> Subject:
    """Copies the PyTorch model, gives the Flax model its weights, and makes both sides repeatable.

    Args:
      pair: the caller's pair.
      dtype: the compared type.
      coarser: for float64, why the digits of float32 are all that can be compared.
      mode: "eval" turns randomness off, "train" gives dropout on both sides the same masks.

    Raises:
      PairError: inputs that are no arrays, a model that cannot be copied, weights that do not fit the table, or NaN
        or infinity in inputs or weights.
    """
    _check_types(pair)
    pair, missing_notes = _without_one_sided(pair)
    inputs = cast(_checked(pair.inputs), dtype)
    require_finite_inputs(inputs, "inputs")
    require_finite_inputs(as_jax_arrays(pair, inputs), "to_ours(inputs)")
    source = _copied(pair.theirs)
    for name, parameter in source.named_parameters():
        if is_below_any(name, pair.only_theirs):
            parameter.requires_grad_(False)
    notes = missing_notes + with_plain_weights(source, pair.table)
    try:
        notes += fold_added_biases(source, pair.table)
    except ValueError as error:
        raise PairError(str(error)) from error
    theirs = source.to(getattr(torch, dtype))
    for path, value in _fitted(pair, theirs).items():
        variable_at(pair.ours, path).set_value(jnp.asarray(value))
    require_finite_weights(theirs, pair.ours)
    ours, mode_notes = _in_mode(pair, theirs, mode)
    notes += mode_notes
    models = _in_both_types(theirs)
    return Subject(
        pair=replace(pair, ours=ours, theirs=models[dtype]),
        models=models,
        inputs=inputs,
        floor=NoiseFloor(dtype, float(np.finfo(np.float32).eps) if coarser else 0.0),
        parameters=sum(parameter.numel() for parameter in theirs.parameters()),
        mode=mode,
        notes=notes,
        unjudged=[coarser] if coarser else [],
    )


def _in_mode(pair: Pair, theirs: torch.nn.Module, mode: Mode) -> tuple[nnx.Module, list[str]]:
    """A view of the Flax model in this mode, and notes; the copy of PyTorch's model is put into it."""
    evaluation = mode == "eval"
    ours = nnx.view(
        pair.ours, deterministic=evaluation, use_running_average=evaluation, raise_if_not_found=False
    )
    theirs.train(not evaluation)
    if evaluation:
        ours.eval()  # also modules with such an attribute and no view of their own
        return ours, unequal_settings(ours, theirs, pair.twins)
    ours.train()
    settings = [note.partition(";")[0] for note in unequal_settings(ours, theirs, pair.twins)]
    return ours, settings + replay_dropout(ours, theirs, pair.twins)


def _without_one_sided(pair: Pair) -> tuple[Pair, list[str]]:
    """The pair without the entries of what one side lacks on purpose, and a note for each.

    Raises:
      PairError: a name of `only_theirs` or `only_ours` that its model does not have, or that the table pairs.
    """
    state = pair.theirs.state_dict()
    paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(pair.ours))]
    notes = one_sided_notes(pair.only_theirs, pair.only_ours, list(state), paths)
    table = []
    for entry in pair.table:
        named = isinstance(entry, Parameter) and is_below_any(entry.ours, pair.only_ours)
        if isinstance(entry, Twin) or not (named or is_below_any(entry.theirs, pair.only_theirs)):
            table.append(entry)
        elif isinstance(entry, Parameter) and entry.ours in paths and entry.theirs in state:
            argument, name = ("only_ours", entry.ours) if named else ("only_theirs", entry.theirs)
            raise PairError(f"{argument} names {name!r}, which both models have; leave it out there")
    return replace(pair, table=tuple(table)), notes


def one_sided_notes(
    only_theirs: Iterable[str], only_ours: Iterable[str], theirs: Sequence[str], ours: Sequence[str]
) -> list[str]:
    """A note for each name of what one side lacks on purpose; `theirs` and `ours` are all names that there are.

    Raises:
      PairError: a name that its model does not have.
    """
    notes = []
    for argument, names, known, library, other in (
        ("only_theirs", only_theirs, theirs, "PyTorch", "Flax"),
        ("only_ours", only_ours, ours, "Flax", "PyTorch"),
    ):
        for name in names:
            if not any(_is_below(one, name) for one in known):
                raise PairError(f"{argument} names {name!r}, which the {library} model does not have")
            notes.append(f"{name}: only {library} has it, as {argument} says; {other} lacks it")
    return notes


def _is_below(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def is_below_any(path: str, names: tuple[str, ...]) -> bool:
    """Whether a dotted path is one of these names or lies below one."""
    return any(_is_below(path, name) for name in names)


def _fitted(pair: Pair, theirs: torch.nn.Module) -> dict[str, np.ndarray]:
    try:
        return fit(pair.ours, pair.table, loadable_arrays(theirs, pair))
    except (AttributeError, IndexError, KeyError) as error:
        raise PairError(f"the table names what the Flax model does not have: {error}") from error
    except ValueError as error:
        if not str(error).startswith("the state_dict does not fit"):
            raise
        raise PairError(
            f"{error}\n"
            "every weight of the PyTorch model needs one in the Flax model: give table_from_names the names that "
            "differ, and write a Parameter for what is laid out in another way"
        ) from error


def _check_types(pair: Pair) -> None:
    if not isinstance(pair.ours, nnx.Module):
        raise PairError(refusal_of(pair.ours, "ours"))
    if not isinstance(pair.theirs, torch.nn.Module):
        raise PairError(f"theirs must be a torch.nn.Module; got a {type(pair.theirs).__name__}")
    if not isinstance(pair.table, tuple | list) or not all(isinstance(entry, Entry) for entry in pair.table):
        raise PairError(
            "table must be a tuple of Parameter, Twin, Derived and Tied, as table_from_names returns it"
        )


def nearby_models(subject: Subject, seed: int) -> dict[DType, torch.nn.Module]:
    """PyTorch's models with other weights, each changed by about `NEARBY_DISTANCE` of itself."""
    model = copy.deepcopy(subject.models[subject.dtype])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.mul_((1 + NEARBY_DISTANCE * noise).to(parameter.dtype))
    return _in_both_types(model)


def _in_both_types(model: torch.nn.Module) -> dict[DType, torch.nn.Module]:
    return {"float32": copy.deepcopy(model).float(), "float64": copy.deepcopy(model).double()}


def loadable_arrays(model: torch.nn.Module, pair: Pair) -> dict[str, np.ndarray]:
    """The entries of a state_dict that the table must cover, and those that it does.

    Left out are buffers without an entry, such as masks and counters: Flax computes its own. So is the second
    name of a tied parameter, where the table has the first, and what only PyTorch has.
    """
    covered = {entry.theirs for entry in pair.table if not isinstance(entry, Twin)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared = {id(parameters[name]) for name in covered if name in parameters}
    arrays = {}
    for key, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or is_below_any(key, pair.only_theirs):
            continue
        if key not in covered and (key not in parameters or id(parameters[key]) in shared):
            continue
        arrays[key] = to_numpy(value)
    return arrays


def names_of_parameters(subject: Subject) -> list[str]:
    """The entries of the table that PyTorch learns, in the table's order."""
    learned = dict(subject.models[subject.dtype].named_parameters(remove_duplicate=False))
    entries = [entry.theirs for entry in subject.pair.table if isinstance(entry, Parameter)]
    return [name for name in dict.fromkeys(entries) if name in learned]


def tied_in_torch_alone(subject: Subject) -> dict[str, str]:
    """Parameters that are one in PyTorch and several in Flax: each name, and another one of the same parameter."""
    learned = dict(subject.pair.theirs.named_parameters(remove_duplicate=False))
    first: dict[int, Parameter] = {}
    tied = {}
    for entry in subject.pair.table:
        if isinstance(entry, Parameter) and entry.theirs in learned:
            other = first.setdefault(id(learned[entry.theirs]), entry)
            if other.theirs != entry.theirs and other.ours != entry.ours:
                tied |= {entry.theirs: other.theirs, other.theirs: entry.theirs}
    return tied


def cast(inputs: Inputs, dtype: DType) -> dict[str, np.ndarray]:
    """The inputs as arrays: floating-point ones as `dtype`, complex ones alike."""
    with failures_explained("reading the inputs", "pass arrays, or dense tensors"):
        return {
            name: _cast(to_numpy(value) if isinstance(value, torch.Tensor) else np.asarray(value), dtype)
            for name, value in inputs.items()
        }


def as_tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The inputs for PyTorch, sharing no memory with the arrays."""
    return {name: to_torch(value) for name, value in inputs.items()}


def as_jax_arrays(pair: Pair, inputs: Inputs) -> dict[str, Any]:
    """The inputs for JAX, in the Flax model's layout and in the order that `to_ours` gives them."""
    with failures_explained("to_ours", "it gets the pair's inputs and returns the Flax model's"):
        return {name: jnp.asarray(value) for name, value in pair.to_ours(inputs).items()}


def _cast(array: np.ndarray, dtype: DType) -> np.ndarray:
    if np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16:
        return array.astype(dtype)
    return array.astype(COMPLEX[dtype]) if np.iscomplexobj(array) else array


def _checked(inputs: Inputs) -> Inputs:
    if not isinstance(inputs, Mapping):
        raise PairError(f"inputs must be a dict of arrays by name; got a {type(inputs).__name__}")
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            continue
        try:
            kind = np.asarray(value).dtype
        except (ValueError, TypeError) as error:
            raise PairError(
                f"inputs[{name!r}] must be an array; it is a ragged {type(value).__name__}"
            ) from error
        if kind.kind not in "biufcV":
            raise PairError(
                f"inputs[{name!r}] must be an array of numbers; got a {type(value).__name__}: leave it out, and "
                "let call_ours and call_theirs pass it"
            )
    return inputs


def _copied(model: torch.nn.Module) -> torch.nn.Module:
    """A deep copy in evaluation mode, all of whose parameters have gradients."""
    # A weight that an older weight norm has computed is no leaf, which deepcopy refuses.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    with failures_explained("copying the PyTorch model", "pass one that copy.deepcopy can copy"):
        copied = copy.deepcopy(model, computed).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return copied


def with_plain_weights(model: torch.nn.Module, table: tuple[Entry, ...]) -> list[str]:
    """Replaces weights that are computed from others by their values, unless the table has the others.

    Returns:
      A note for each module with weight norm, spectral norm or another parametrization.
    """
    covered = {entry.theirs for entry in table if isinstance(entry, Parameter)}
    notes = []
    for path, module in list(model.named_modules()):
        names = {f"{path}.{name}".removeprefix(".") for name, _ in module.named_parameters()}
        if names <= covered:
            continue
        folded = []
        if torch.nn.utils.parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                torch.nn.utils.parametrize.remove_parametrizations(module, name)
                folded.append(name)
        hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
        for hook, remove in (
            ("WeightNorm", torch.nn.utils.remove_weight_norm),
            ("SpectralNorm", torch.nn.utils.remove_spectral_norm),
        ):
            if hook in hooks:
                remove(module)
                folded.append("weight")
        if folded:
            notes.append(
                f"{path or MODEL}: PyTorch computes its {', '.join(folded)} from other parameters (weight norm or the "
                "like); compared are the values, as plain parameters, not how the others learn"
            )
    return notes
