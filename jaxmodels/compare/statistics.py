"""How BatchNorm's running statistics move in a forward pass in training mode, on both sides.

Flax and PyTorch differ in two ways. Flax's `momentum` is the share of the old statistics, PyTorch's that of the
new ones. PyTorch's running variance is unbiased, which is n / (n - 1) times the variance that Flax keeps.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from jaxmodels.compare.batchnorm_conventions import Update
from jaxmodels.compare.noise import DType, NoiseFloor, Statistic, relative_error, rounding_noise
from jaxmodels.compare.pair import parameters_of
from jaxmodels.compare.preparation import Subject, as_jax_arrays, as_tensors, cast
from jaxmodels.compare.torch_mode import restore_statistics, statistics_of
from jaxmodels.compare.training_mode import begin_run
from jaxmodels.convert.core import export, variable_at
from jaxmodels.convert.table import Parameter
from jaxmodels.convert.torch_io import to_numpy


Arrays = dict[str, np.ndarray]


def compare_statistics(subject: Subject) -> list[Statistic]:
    """Runs both sides once, and compares every buffer of the table that this run changes."""
    buffers = dict(subject.models[subject.dtype].named_buffers())
    entries = [entry for entry in parameters_of(subject.pair.table) if entry.theirs in buffers]
    entries = [entry for entry in entries if buffers[entry.theirs].is_floating_point()]
    if not entries:
        return []
    runs = {dtype: _torch_statistics(subject, dtype) for dtype in subject.models}
    theirs, counts = runs[subject.dtype]
    float32, float64 = runs["float32"][0], runs["float64"][0]
    ours = _flax_statistics(subject, entries)
    checks = []
    for name in dict.fromkeys(entry.theirs for entry in entries):
        old = to_numpy(buffers[name])
        if np.array_equal(ours[name], old) and np.array_equal(theirs[name], old):
            continue
        noise = rounding_noise(float32[name], float64[name]) * subject.floor.scale
        check = subject.floor.check(name, relative_error(ours[name], theirs[name]), noise)
        reason, convention = None, False
        if not check.ok:
            path = name.rpartition(".")[0]
            momentum = getattr(subject.models[subject.dtype].get_submodule(path), "momentum", None)
            update = Update(momentum, old, theirs[name], counts.get(path, 0))
            reason, convention = update.explained(name, ours[name], partial(_agree, subject.floor, noise))
            if convention:
                subject.notes.append(f"{name}: {reason}, and this is not counted")
        checks.append(
            Statistic(
                check.name, check.error, check.noise, check.tolerance, check.undecided, reason, convention
            )
        )
    return checks


def _agree(floor: NoiseFloor, noise: float, actual: np.ndarray, expected: np.ndarray) -> bool:
    return floor.check("", relative_error(actual, expected), noise).ok


def _torch_statistics(subject: Subject, dtype: DType) -> tuple[Arrays, dict[str, int]]:
    """The buffers after a pass, and how many values per channel each BatchNorm saw."""
    model = subject.models[dtype]
    before = statistics_of(model)
    counts: dict[str, int] = {}

    def count(path: str, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        counts[path] = args[0].numel() // module.num_features

    handles = [
        module.register_forward_pre_hook(partial(count, path))
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    try:
        begin_run(model)
        with torch.no_grad():
            subject.pair.call_theirs(model, as_tensors(cast(subject.inputs, dtype)))
        after = {name: to_numpy(buffer).copy() for name, buffer in model.named_buffers()}
    finally:
        for handle in handles:
            handle.remove()
        restore_statistics(model, before)
    return after, counts


def _flax_statistics(subject: Subject, entries: list[Parameter]) -> Arrays:
    """The same variables after a pass in JAX, by PyTorch's names and in its layout."""
    inputs = as_jax_arrays(subject.pair, subject.inputs)
    graphdef, state = nnx.split(subject.pair.ours)

    @jax.jit
    def run(state, values):
        model = nnx.merge(graphdef, state)
        subject.pair.call_ours(model, dict(zip(inputs, values, strict=True)))
        return [variable_at(model, entry.ours).get_value() for entry in entries]

    moved = nnx.clone(subject.pair.ours)
    for entry, value in zip(entries, run(state, list(inputs.values())), strict=True):
        variable_at(moved, entry.ours).set_value(value)
    return export(moved, entries)
