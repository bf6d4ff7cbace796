"""Cases: which mistake is planted where, and what each rule says of it."""

import importlib
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.mistakes import five
from benchmarks.mistakes.kinds import IN_GRADIENT, IN_LOSS, WORDS, names_mistake
from benchmarks.mistakes.pieces import Piece, asked
from jaxmodels.compare import Pair, Result, compare
from jaxmodels.compare.divergence import LOSS, MODEL
from jaxmodels.compare.outputs import as_array, axes_of, matched, named_leaves, to_our_axes
from jaxmodels.compare.preparation import as_jax_arrays, as_tensors, cast
from jaxmodels.models import MODEL_NAMES


ARCHITECTURES = ("bert", "gpt2", "t5", "llama", "vit", "convnext", "resnet", "unet", "lstm")
SIZES = 3


@dataclass(frozen=True)
class Case:
    """A pair to compare.

    Attributes:
      architecture: one of `ARCHITECTURES` or of the five models.
      kind: the mistake; None for a correct port.
      seed: of weights, inputs, size, and of the place where the mistake is planted.
    """

    architecture: str
    kind: str | None
    seed: int

    @property
    def name(self) -> str:
        return f"{self.architecture}/{self.kind or 'correct'}/{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of one case.

    Attributes:
      place: where the mistake was planted; None for a correct port.
      verdict, layer, detail, diagnosis: of the comparison.
      outputs_differ: whether an output differs by more than the comparison's tolerance.
      closeness: the smallest t for which `np.allclose(ours, theirs, rtol=t, atol=t)` holds for all outputs.
      divergence: the mean Kullback-Leibler divergence of the softmax of the last axis.
      located: whether the comparison names the place.
      diagnosed: whether its diagnosis names the mistake.
      effect: how far the mistake moves JAX's own outputs, relative to the largest value; None where only a loss or a
        gradient shows it, and for the five models.
      seconds: that the comparison took.
    """

    case: Case
    place: str | None
    verdict: str
    layer: str | None
    detail: str | None
    diagnosis: str | None
    outputs_differ: bool
    closeness: float
    divergence: float
    located: bool
    diagnosed: bool
    effect: float | None
    seconds: float

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        return values.pop("case") | values


def build(case: Case) -> Pair:
    """The correct pair of a case."""
    if case.architecture in ARCHITECTURES:
        module = importlib.import_module(f"benchmarks.mistakes.architectures.{case.architecture}")
        pair = module.build(case.seed, case.seed % SIZES)
        for path, piece in nnx.iter_modules(pair.ours):
            if isinstance(piece, Piece):
                piece.path = ".".join(map(str, path)) or MODEL
        return pair
    return five.build(next(name for name in MODEL_NAMES if name == case.architecture), case.seed)


def mistakes_of(architecture: str) -> list[str]:
    """The kinds that can be planted."""
    if architecture not in ARCHITECTURES:
        return [one.kind for one in five.REPLACEMENTS if one.model == architecture]
    applicable = _sites(build(Case(architecture, None, 0)))
    return [kind for kind in WORDS if kind in applicable]


def _sites(pair: Pair) -> dict[str, list[str]]:
    """The paths at which each kind can be planted: one run asks for all of them."""
    asked.clear()
    inputs = as_jax_arrays(pair, cast(pair.inputs, "float32"))
    pair.call_ours(pair.ours, inputs)
    assert pair.loss_ours is not None
    pair.loss_ours(pair.ours, inputs)
    found: dict[str, list[str]] = {}
    for kind, path in asked:
        if path not in found.setdefault(kind, []):
            found[kind].append(path)
    return found


def all_cases(controls: int, architectures: tuple[str, ...]) -> list[Case]:
    """Every kind in every architecture that allows it, and correct ports; in an order that mixes them."""
    cases = [
        Case(architecture, kind, seed)
        for architecture in architectures
        for seed, kind in enumerate(mistakes_of(architecture))
    ]
    ports = [name for name in architectures for _ in range(1 if name in MODEL_NAMES else 4)]
    cases += [Case(ports[i % len(ports)], None, 1000 + i) for i in range(controls)]
    order = np.random.default_rng(0).permutation(len(cases))
    return [cases[i] for i in order]


def run(case: Case) -> Finding:
    """Plants the mistake, compares, and judges the outputs by the other rules too."""
    pair, context, place = build(case), nullcontext(), None
    if case.kind is not None and case.architecture in ARCHITECTURES:
        places = _sites(pair)[case.kind]
        place = places[case.seed % len(places)]
        for _, piece in nnx.iter_modules(pair.ours):
            if isinstance(piece, Piece) and piece.path == place:
                piece.mistake = case.kind
        place = LOSS if case.kind in IN_LOSS else place
    elif case.kind is not None:
        mistake = next(m for m in five.REPLACEMENTS if (m.kind, m.model) == (case.kind, case.architecture))
        context, place = five.planted(mistake), mistake.layer
    begin = time.perf_counter()
    gradients = case.kind in IN_LOSS | IN_GRADIENT
    with context:
        result = compare(pair, steps=0, gradients=gradients)
        seconds = time.perf_counter() - begin
        distances = list(_outputs(pair))
    effect = None
    if case.kind in WORDS and case.architecture in ARCHITECTURES and not gradients:
        effect = _effect(pair, [ours for ours, _ in distances])
    return Finding(
        case=case,
        place=place,
        verdict=result.verdict,
        layer=result.divergence.layer if result.divergence else None,
        detail=result.divergence.detail if result.divergence else result.reason,
        diagnosis=result.diagnosis,
        outputs_differ=not all(check.ok for check in result.outputs),
        closeness=max(_closeness(*both) for both in distances),
        divergence=max(_kl_divergence(*both) for both in distances),
        located=_located(case, place, result),
        diagnosed=case.kind is not None and names_mistake(case.kind, result.diagnosis),
        effect=effect,
        seconds=round(seconds, 2),
    )


def _effect(pair: Pair, wrong: list[np.ndarray]) -> float:
    """How far the outputs move when the mistake is taken out of JAX's model."""
    for _, piece in nnx.iter_modules(pair.ours):
        if isinstance(piece, Piece):
            piece.mistake = ""
    right = [ours for ours, _ in _outputs(pair)]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(wrong, right, strict=True))


def _located(case: Case, place: str | None, result: Result) -> bool:
    """A wrong gradient is named at a parameter behind the place: it may lie anywhere within the module."""
    if place is None or result.divergence is None:
        return False
    layer = result.divergence.layer
    return layer == place or (case.kind in IN_GRADIENT and (place == MODEL or layer.startswith(place)))


def _outputs(pair: Pair) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both sides' outputs in the same axes, after the comparison has shared the weights."""
    inputs = cast(pair.inputs, "float32")
    ours = nnx.view(pair.ours, deterministic=True, use_running_average=True, raise_if_not_found=False)
    mine = named_leaves(pair.call_ours(ours, as_jax_arrays(pair, inputs)))
    theirs = named_leaves(pair.call_theirs(pair.theirs.float(), as_tensors(inputs)))
    arrays = ({name: as_array(leaf) for name, leaf in side.items()} for side in (mine, _detached(theirs)))
    for name, one, other in matched(*arrays):
        aligned = to_our_axes(other, one, axes_of(pair.output_axes, name))
        yield one.astype(np.float64), aligned.astype(np.float64)


def _detached(leaves: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf.detach() for name, leaf in leaves.items()}


def _closeness(ours: np.ndarray, theirs: np.ndarray) -> float:
    distance = (np.abs(ours - theirs) / (1 + np.abs(theirs))).max()
    return float(distance) if np.isfinite(distance) else 1e9


def _kl_divergence(ours: np.ndarray, theirs: np.ndarray) -> float:
    p, q = (np.asarray(jax.nn.log_softmax(x, axis=-1), np.float64) for x in (theirs, ours))
    value = (np.exp(p) * (p - q)).sum(-1).mean()
    return float(value) if np.isfinite(value) else 1e9
