"""The folder of a capture: `capture.json`, and one safetensors file for the inputs and for each type that was run.

The format has a version. `capture.json` holds a checksum of every other file, so that a folder is read as it was
written or refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from jaxmodels.atomic import atomic_write_all
from jaxmodels.compare.layers import Event
from jaxmodels.compare.projection import Projection
from jaxmodels.convert.files import read_state_dict, write_safetensors
from jaxmodels.convert.table import Entry, Parameter, Tied, Twin
from jaxmodels.json_values import as_json


FORMAT, VERSION = "jaxmodels capture", 2
INDEX_FILE, INPUTS_FILE = "capture.json", "inputs.safetensors"
Side = Literal["torch", "jax"]
Kept = np.ndarray | Projection
# What NumPy's reader of safetensors does not know is stored as numbers of another type and as many bytes.
STORED_AS = {
    "bfloat16": np.dtype(np.uint16),
    "complex64": np.dtype(np.float32),
    "complex128": np.dtype(np.float64),
}
TENSORS = (
    "outputs",
    "weights",
    "gradients",
    "weights_after",
    "constants",
    "statistics",
    "routing",
)  # of a run, by name


@dataclass(kw_only=True)
class Run:
    """What one side computed in one type.

    Attributes:
      dtype: "float64", "float32" or "bfloat16", of weights and inputs.
      products: the error of a float32 "matmul" and a "convolution" under the settings of the run; see `precision`.
      events: what every module received and returned, in order of time; empty where calls could not be recorded.
      outputs: by name.
      weights: all parameters and buffers before the first step.
      gradients: of the loss at these weights.
      losses: before each step.
      weights_after: the parameters after the last step; empty without steps.
      operations: of PyTorch, how the "forward" pass and the "loss" were computed; see `operations`.
      constants: the tensors of these operations that are neither weights nor inputs.
      statistics: in training mode, the buffers after one forward pass.
      batch_norms: of each BatchNorm of PyTorch, the momentum and the number of values per channel of this pass.
      routing: what the routers chose; see `routes`.
      coarser: in float64, the first operation that computed in a coarser type, and this type.
      notes: what the reader should know.
    """

    dtype: str
    products: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    weights_after: dict[str, Any] = field(default_factory=dict)
    operations: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    batch_norms: dict[str, tuple[float | None, int]] = field(default_factory=dict)
    routing: dict[str, Any] = field(default_factory=dict)
    coarser: tuple[str, str] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Capture:
    """One side of a pair.

    Attributes:
      name: the pair's.
      side: the framework.
      device: where it ran.
      versions: of Python and the libraries.
      settings: `Options.settings`.
      inputs: as they were given, by name.
      modules: the class of every module by its path; "" is the model.
      learned: names of the parameters, under all of their names.
      table: which of its names are which of the other side's, where it was given; in `convert.table`'s words.
      runs: by type.
      path: where it was read.
    """

    name: str
    side: Side
    device: str
    versions: dict[str, str]
    settings: dict[str, Any]
    inputs: dict[str, np.ndarray]
    modules: dict[str, str]
    learned: list[str]
    table: list[Entry] | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    path: Path | None = None

    @property
    def described(self) -> str:
        """How sentences name it."""
        framework = {"torch": "PyTorch", "jax": "JAX"}[self.side]
        return f"{self.path.name if self.path else self.name} ({framework} on {self.device})"


def check_target(path: Path) -> None:
    """Refuses a place where no capture can be written, before anything is computed.

    Raises:
      ValueError: a file, or a folder with something else in it.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / INDEX_FILE).is_file():
        raise ValueError(f"path must be a new folder or an earlier capture; {path} holds something else")
    if path.exists() and not path.is_dir():
        raise ValueError(f"path must be a folder; {path} is a file")


def write_capture(capture: Capture, path: Path) -> None:
    """Writes all files of a capture, or none.

    Raises:
      ValueError: another folder or file is at `path`.
      OSError: it cannot be written.
    """
    check_target(path)
    files = {INPUTS_FILE: {name: _stored(np.asarray(array)) for name, array in capture.inputs.items()}}
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": capture.name,
        "side": capture.side,
        "device": capture.device,
        "versions": capture.versions,
        "settings": capture.settings,
        "inputs": {name: _description(np.asarray(array)) for name, array in capture.inputs.items()},
        "modules": capture.modules,
        "learned": capture.learned,
        "table": None if capture.table is None else table_as_json(capture.table),
        "runs": {},
    }
    for dtype, run in capture.runs.items():
        files[f"{dtype}.safetensors"], content["runs"][dtype] = _run_as_json(run)
    stale = [old for old in path.glob("*.safetensors") if old.name not in files]
    with atomic_write_all([path / name for name in (*files, INDEX_FILE)], remove=stale) as temporaries:
        for (_, arrays), temporary in zip(files.items(), temporaries, strict=False):
            write_safetensors(temporary, arrays)
        content["files"] = {
            name: _checksum(temporary) for name, temporary in zip(files, temporaries, strict=False)
        }
        text = json.dumps(as_json(content), indent=1, ensure_ascii=False, allow_nan=False)
        temporaries[-1].write_text(text + "\n", encoding="utf-8")


def read_capture(path: str | Path) -> Capture:
    """Reads a folder that `capture_torch` or `capture_jax` has written.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it is no capture, is incomplete or damaged, or was written by a later version.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no such capture: {path} is not a folder")
    if not (path / INDEX_FILE).is_file():
        raise ValueError(f"{path} is no capture: it has no {INDEX_FILE}")
    try:
        content = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))
        known = content["format"] == FORMAT
        version = content["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path / INDEX_FILE} is damaged or not a capture's: {error}") from error
    if not known or version != VERSION:
        raise ValueError(
            f"{path} must be a {FORMAT} of version {VERSION}; it is {content['format']!r} of version {version!r}: "
            "capture again with this version of jaxmodels"
        )
    try:
        digests = {str(name): str(digest) for name, digest in content["files"].items()}
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{path / INDEX_FILE} is damaged: it lists no files; capture again") from error
    files = {name: _checked_file(path / name, digest) for name, digest in digests.items()}
    try:
        return _capture_from(content, files, path)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path / INDEX_FILE} is damaged: {type(error).__name__} {error}; capture again"
        ) from error


def _capture_from(content: dict[str, Any], files: Mapping[str, dict[str, np.ndarray]], path: Path) -> Capture:
    table = content["table"]
    return Capture(
        inputs={
            name: _restored(files[INPUTS_FILE], name, description)
            for name, description in content["inputs"].items()
        },
        table=None if table is None else table_from_json(table),
        runs={
            dtype: _run_from_json(dtype, run, files[f"{dtype}.safetensors"])
            for dtype, run in content["runs"].items()
        },
        path=path,
        **{
            key: content[key]
            for key in ("name", "side", "device", "versions", "settings", "modules", "learned")
        },
    )


def _checked_file(path: Path, digest: str) -> dict[str, np.ndarray]:
    if path.parent / path.name != path or not path.is_file():
        raise ValueError(f"{path.parent} is incomplete: {path.name} is missing; capture again")
    if _checksum(path) != digest:
        raise ValueError(f"{path} is damaged, or of another capture: its checksum differs; capture again")
    return read_state_dict(path)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run_as_json(run: Run) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a run, and everything else about it."""
    arrays: dict[str, np.ndarray] = {"losses": np.array(run.losses, np.float64)}
    tensors: dict[str, Any] = {}

    def keep(key: str, value: Kept) -> str:
        arrays[key], tensors[key] = _stored(value), _description(value)
        if isinstance(value, Projection):
            arrays[f"{key} moments"] = value.moments
        return key

    content: dict[str, Any] = {
        kind: {name: keep(f"{kind}/{name}", value) for name, value in getattr(run, kind).items()}
        for kind in TENSORS
    }
    content["events"] = [
        [event.path, event.call, event.kind, [keep(f"events/{i}/{j}", x) for j, x in enumerate(event.arrays)]]
        for i, event in enumerate(run.events)
    ]
    own = {
        "operations": run.operations,
        "batch_norms": run.batch_norms,
        "products": run.products,
        "coarser": run.coarser,
        "notes": run.notes,
    }
    return arrays, {**content, **own, "tensors": tensors}


def _run_from_json(dtype: str, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Run:
    tensors = {key: _restored(arrays, key, description) for key, description in content["tensors"].items()}
    return Run(
        dtype=dtype,
        operations=content["operations"],
        batch_norms={path: tuple(values) for path, values in content["batch_norms"].items()},
        products=content["products"],
        coarser=tuple(content["coarser"]) if content["coarser"] else None,
        notes=content["notes"],
        losses=arrays["losses"].tolist(),
        events=[
            Event(path, call, kind, tuple(tensors[key] for key in keys))
            for path, call, kind, keys in content["events"]
        ],
        **{kind: {name: tensors[key] for name, key in content[kind].items()} for kind in TENSORS},
    )


def _stored(value: Kept) -> np.ndarray:
    array = value.sums if isinstance(value, Projection) else value
    kind = STORED_AS.get(array.dtype.name)
    return np.asarray(array, order="C") if kind is None else np.array(array, order="C", ndmin=1).view(kind)


def _description(value: Kept) -> dict[str, Any]:
    description: dict[str, Any] = {"dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, Projection):
        description |= {"sums": _description(value.sums), "odd": value.odd}
    return description


def _restored(arrays: Mapping[str, np.ndarray], key: str, description: Mapping[str, Any]) -> Any:
    dtype = np.dtype(ml_dtypes.bfloat16 if description["dtype"] == "bfloat16" else description["dtype"])
    if "sums" in description:
        sums = _restored(arrays, key, description["sums"])
        return Projection(
            sums, tuple(description["shape"]), dtype, arrays[f"{key} moments"], description["odd"]
        )
    array = arrays[key]
    array = array.view(dtype) if dtype.name in STORED_AS else array
    return array.reshape(description["shape"])


def table_as_json(table: list[Entry]) -> list[dict[str, Any]]:
    """The entries that name a parameter or a module on both sides."""
    kept = (entry for entry in table if isinstance(entry, Parameter | Tied | Twin))
    return [
        {"entry": type(entry).__name__} | {k: v for k, v in entry._asdict().items() if k != "expected"}
        for entry in kept
    ]


def table_from_json(content: list[dict[str, Any]]) -> list[Entry]:
    """The inverse of `table_as_json`."""
    kinds = {kind.__name__: kind for kind in (Parameter, Tied, Twin)}
    entries: list[Entry] = []
    for item in content:
        values = {key: value for key, value in item.items() if key != "entry"}
        for name in ("part", "block"):
            values |= {name: tuple(values[name])} if values.get(name) is not None else {}
        if "sizes" in values:
            values["sizes"] = tuple((name, size) for name, size in values["sizes"])
        entries.append(kinds[item["entry"]](**values))
    return entries
