"""`jaxmodels capture`: one side of a user's file. Needs the framework of that side."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxmodels.compare.captures.files import Side
from jaxmodels.compare.captures.options import DTYPES, JaxOptions, Mode, Options
from jaxmodels.compare.pair_files import failure, read_pairs, run_file
from jaxmodels.compare.places import PlacedError, place
from jaxmodels.compare.training import OptimizerName, Training


FUNCTIONS: dict[Side, str] = {"torch": "torch_side", "jax": "jax_side"}


def write(
    path: Path,
    *,
    side: Side,
    output: Path,
    dtypes: Sequence[str] = DTYPES[:2],
    steps: int = 3,
    limit: int | None = None,
    full_precision: bool = True,
    mode: Mode = "eval",
    optimizer: OptimizerName | None = None,
    routing_from: Path | None = None,
) -> int:
    """Captures one side of a user's file and says where it is.

    The file has a function `torch_side()` or `jax_side()` that returns the arguments of `capture_torch` or
    `capture_jax` as a dict, or a `pair()`, which needs both frameworks.

    Returns:
      The exit status, 0.

    Raises:
      ValueError, OSError: the file gives no side, the model fails, or the folder cannot be written.
    """
    if routing_from is not None and side == "torch":
        raise ValueError(
            "routing_from is for the JAX side, which repeats PyTorch's choices; got --side torch"
        )
    arguments = _side(path, side)
    options: dict[str, Any] = {
        "dtypes": dtypes,
        "steps": steps,
        "limit": limit,
        "full_precision": full_precision,
        "mode": mode,
        "training": None if optimizer is None else Training(optimizer=optimizer),
    }
    if routing_from is not None:
        options["routing_from"] = routing_from
    if side == "torch":
        from jaxmodels.compare.captures.torch_side import capture_torch as capture
    else:
        from jaxmodels.compare.captures.jax_side import capture_jax as capture
    known = ["model", "inputs", *(one.name for one in fields(Options if side == "torch" else JaxOptions))]
    unknown = [str(name) for name in arguments if name not in known]
    if unknown:
        raise ValueError(
            f"{path}: {FUNCTIONS[side]}() returns {', '.join(unknown)}, which capture_{side} does not take; "
            f"it takes {', '.join(known)}"
        )
    options |= arguments
    written = capture(options.pop("model"), options.pop("inputs"), output, **options)
    print(f"captured: {written}")
    return 0


def _side(path: Path, side: Side) -> dict[str, Any]:
    """The arguments of a capture."""
    module = run_file(path)
    function = getattr(module, FUNCTIONS[side], None)
    if function is None and hasattr(module, "pair"):
        return _side_of_pair(path, side)
    where = place(path, 1)
    if not callable(function):
        raise PlacedError(
            f"{where.file} has neither {FUNCTIONS[side]}() nor pair(): define one that takes no argument; "
            f"{FUNCTIONS[side]}() returns the arguments of capture_{side} as a dict, without the path",
            where,
        )
    try:
        arguments = function()
    except Exception as error:
        raise failure(f"{FUNCTIONS[side]}()", error, path) from error
    if not isinstance(arguments, dict) or not {"model", "inputs"} <= arguments.keys():
        got = (
            f"a dict with {', '.join(arguments)}"
            if isinstance(arguments, dict)
            else f"a {type(arguments).__name__}"
        )
        raise PlacedError(
            f"{where.file}: {FUNCTIONS[side]}() must return a dict with model and inputs; got {got}", where
        )
    return arguments


def _side_of_pair(path: Path, side: Side) -> dict[str, Any]:
    """The same of a pair, whose Flax model gets PyTorch's weights first."""
    from jaxmodels.compare.preparation import prepare

    pairs = read_pairs(path)
    if len(pairs) > 1:
        raise ValueError(f"a capture holds one pair; pair() of {path} returns {len(pairs)}")
    pair = prepare(pairs[0], "float32").pair
    shared: dict[str, Any] = {"name": pair.name, "table": pair.table, "output_axes": pair.output_axes}
    shared |= {"inputs": pair.inputs, "batches": pair.batches}
    if pair.routing_ours and pair.routing_theirs:
        shared |= {
            "routers": pair.routers,
            "routing": pair.routing_theirs if side == "torch" else pair.routing_ours,
        }
    if side == "torch":
        return {**shared, "model": pair.theirs, "call": pair.call_theirs, "loss": pair.loss_theirs}
    own = {"model": pair.ours, "call": pair.call_ours, "loss": pair.loss_ours, "to_ours": pair.to_ours}
    return {**shared, **own}
