"""What a task must give the trainer: data, a model, a loss, metrics, and something to look at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int
from matplotlib.figure import Figure

from jaxmodels.data.preprocessing import Preprocessing
from jaxmodels.training.draws import Draws


Batch = Mapping[str, Any]  # arrays whose first axis is the example
Outputs = Mapping[str, Array]  # the same, of one forward pass
Split = Literal["validation", "test"]

# `call(name, batch)` runs the function of that name (one of `Task.functions`) on the trained model, whatever
# the framework and the devices, and returns NumPy arrays.
Call = Callable[[str, Mapping[str, np.ndarray]], Any]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Something to look at in the report: an image, a text, or both."""

    title: str
    caption: str = ""  # what one sees, in a sentence
    figure: Figure | None = None
    text: str | None = None


class Unit(NamedTuple):
    """What a run counts when it says how fast it is."""

    name: str  # "images", "tokens"
    per_example: int = 1


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The number by which runs of a task are compared."""

    name: str  # a key of `evaluate`
    better: Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is saved of a trained model.

    Attributes:
      model: the published model inside what was trained.
      preprocessing: makes the model's inputs, as in training; None if no function does.
      decoder: arrays that were trained beside the model; None if there are none.
    """

    model: nnx.Module
    preprocessing: Preprocessing | None = None
    decoder: Mapping[str, np.ndarray] | None = None


@runtime_checkable
class Task(Protocol):
    """A model and the data it is trained on.

    Attributes:
      name: what the task is called, for instance "classification".
      examples: how many training examples there are.
      unit: what an example consists of.
      metric: the main one of those that `evaluate` returns.
      functions: what evaluation runs on the model, by name; each takes (model, batch) and is compiled.
    """

    @property
    def name(self) -> str: ...

    @property
    def examples(self) -> int: ...

    @property
    def unit(self) -> Unit: ...

    @property
    def metric(self) -> Metric: ...

    @property
    def functions(self) -> Mapping[str, Callable[[Any, Batch], Any]]: ...

    def model(self, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Module:
        """What is trained, with fresh weights. Traceable, so that every array can be created on its own device."""
        ...

    def batch(self, indices: Int[np.ndarray, " b"], draws: Draws) -> dict[str, np.ndarray]:
        """The training examples of these indices, as small as they can be: images and texts as bytes.

        Args:
          indices: of the examples, from 0 to `examples` - 1.
          draws: gives what is random in them.
        """
        ...

    def inputs(self, batch: Batch) -> Batch:
        """What `forward` reads, from what `batch` returned; traced, as a part of the compiled step."""
        ...

    def forward(self, model: Any, batch: Batch, rngs: nnx.Rngs | None) -> Outputs:
        """What the loss is a function of: an entry for every example of the batch, or of a part of it.

        Args:
          model: what `model` returned.
          batch: what `inputs` returned.
          rngs: of dropout; None leaves it out.
        """
        ...

    def loss(self, model: Any, outputs: Outputs) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Loss and training metrics of the outputs of the whole batch."""
        ...

    def evaluate(self, call: Call, split: Split) -> dict[str, float]:
        """Metrics on held-out data."""
        ...

    def baselines(self) -> dict[str, dict[str, float]]:
        """Test metrics of simple methods: {baseline: {metric: value}}."""
        ...

    def samples(self, call: Call) -> list[Sample]:
        """Images and texts for people to look at."""
        ...

    def export(self, model: Any) -> Exported:
        """What goes into the hub folder."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the data is, in a few words and numbers (JSON), for the report and for checks on resuming."""
        ...
