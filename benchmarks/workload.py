"""What the five pairs of the benchmarks have in common: workloads, shared files, and both sides.

Imports neither JAX nor PyTorch: a process that measures one of them must not load the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from jaxmodels.benchmark.kinds import Precision


if TYPE_CHECKING:
    import torch
    from flax import nnx

    from jaxmodels.compare import Pair
    from jaxmodels.models import ModelName
    from jaxmodels.nn import Implementation

Size = Literal["small", "medium", "gpu"]
Inputs = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and the shape of its inputs.

    Attributes:
      arguments: the model's hyperparameters, which have the same names on both sides.
      batch: number of examples.
      length: ids of a text, for the models that read one.
      image_size: height and width of the images, for the model that has no such hyperparameter.
      encoder: hyperparameters of MaMMUT's image encoder.
      iters: GLOM's steps in the forward pass; None is twice the number of levels.
    """

    arguments: Mapping[str, Any]
    batch: int
    length: int = 0
    image_size: int = 0
    encoder: Mapping[str, Any] | None = None
    iters: int | None = None


@dataclass(frozen=True)
class Curve:
    """How time grows with the size of the input.

    Attributes:
      axis: what grows.
      points: its values.
      at: the workload at one of them.
    """

    axis: str
    points: tuple[Any, ...]
    at: Callable[[Any], Workload]


class BenchmarkPair(ABC):
    """One of the five models in all its sizes.

    A file in benchmarks/pairs has one of them, and gives its `pair`, `jax_side` and `torch_side` as functions, as any
    file for `jaxmodels benchmark` does. `ours` is the JAX side and `theirs` the PyTorch side, as in `Pair`.
    """

    name: ClassVar["ModelName"]
    sizes: ClassVar[Mapping[Size, Workload]]
    curve: ClassVar[Curve]

    @abstractmethod
    def inputs(self, workload: Workload) -> dict[str, np.ndarray]:
        """One batch of real data in PyTorch's layout.

        Returns:
          Some of: images and clean (b, 3, height, width) float32, tokens (b, length + 1) int64, text (b, length)
          int64, labels (b,) int64, decoder (dim, pixels of a patch) float32.
        """

    @abstractmethod
    def config(self, workload: Workload) -> Any:
        """The configuration of the Flax model."""

    def encoder_config(self, workload: Workload) -> Any:
        """The configuration of the image encoder, where the model has one."""
        return None

    @abstractmethod
    def ours(self, workload: Workload, **layer: Any) -> "nnx.Module":
        """The Flax model; `layer` has `dtype` and `rngs`."""

    @abstractmethod
    def theirs(self, workload: Workload) -> "torch.nn.Module":
        """The PyTorch twin with weights of its own."""

    @abstractmethod
    def call(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        """The outputs of a forward pass of either side."""

    @abstractmethod
    def loss_ours(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        """The loss that a training step minimises."""

    @abstractmethod
    def loss_theirs(self, model: Any, inputs: Inputs, workload: Workload) -> Any:
        """The loss that a training step minimises."""

    def workload(self, size: Size, point: int | None = None) -> Workload:
        """A workload; `point` is the index of a point on the scaling curve, which takes the place of `size`."""
        return self.sizes[size] if point is None else self.curve.at(self.curve.points[point])

    def described(self, size: Size) -> str:
        """The workload in results.json, by which a later run knows whether it measured the same."""
        workload = self.sizes[size]
        return (
            f"Workload(config={self.config(workload)!r}, batch={workload.batch}, length={workload.length}, "
            f"encoder={self.encoder_config(workload)!r}, iters={workload.iters})"
        )

    def build(self, workload: Workload, *, dtype: Any = None) -> "nnx.Module":
        """The Flax model with its initial weights."""
        from flax import nnx

        return self.ours(workload, dtype=dtype, rngs=nnx.Rngs(0))

    def write_files(self, folder: Path, size: Size, point: int | None = None) -> None:
        """Writes what both sides read: weights.safetensors with PyTorch's names, and inputs.safetensors.

        The weights are those of the Flax model, a little perturbed.
        """
        from jaxmodels.convert.files import write_safetensors

        folder.mkdir()
        workload = self.workload(size, point)
        write_safetensors(folder / "weights.safetensors", self._weights(workload))
        write_safetensors(folder / "inputs.safetensors", self.inputs(workload))

    def jax_side(
        self,
        size: Size = "small",
        *,
        point: int | None = None,
        precision: Precision = "float32",
        attention: "Implementation" = "auto",
        files: Path | None = None,
    ) -> dict[str, Any]:
        """The JAX side, as `jaxmodels benchmark` and `jaxmodels capture` take it.

        Args:
          size, point: name the workload.
          precision: type of the computation; parameters are float32.
          attention: see `jaxmodels.nn.attend`.
          files: the folder of `write_files`; without it, weights and inputs are made here.
        """
        import jax.numpy as jnp
        from flax import nnx

        from jaxmodels.convert.core import load_state_dict

        workload = self.workload(size, point)
        dtype = jnp.bfloat16 if precision == "bfloat16" else None
        if files is None:
            model = perturb(self.build(workload, dtype=dtype))
        else:
            skeleton = nnx.eval_shape(lambda: self.build(workload, dtype=dtype))
            model = load_state_dict(skeleton, files / "weights.safetensors")
        return {
            "model": nnx.view(model, attention=attention),
            "inputs": to_ours(self._inputs(workload, files)),
            "call": lambda model, inputs, **routing: self.call(model, inputs, workload, **routing),
            "loss": lambda model, inputs, **routing: self.loss_ours(model, inputs, workload, **routing),
        }

    def torch_side(
        self, size: Size = "small", *, point: int | None = None, files: Path | None = None
    ) -> dict[str, Any]:
        """The PyTorch side; arguments as for `jax_side`. Without `files` it needs JAX, which makes the weights."""
        import safetensors.torch
        import torch

        workload = self.workload(size, point)
        if files is None:
            weights = {name: torch.from_numpy(array) for name, array in self._weights(workload).items()}
        else:
            weights = safetensors.torch.load_file(files / "weights.safetensors")
        model = self.theirs(workload)
        model.load_state_dict(weights)
        return {
            "model": model,
            "inputs": self._inputs(workload, files),
            "call": lambda model, inputs, **routing: self.call(model, inputs, workload, **routing),
            "loss": lambda model, inputs, **routing: self.loss_theirs(model, inputs, workload, **routing),
        }

    def pair(self, size: Size = "small", **options: Any) -> "Pair":
        """Both sides to be compared, in float32 or float64; `options` are further arguments of `Pair`."""
        from jaxmodels.compare import Pair
        from jaxmodels.convert.tables import table_of

        ours, theirs = self.jax_side(size), self.torch_side(size)
        return Pair(
            name=self.name,
            ours=ours["model"],
            theirs=theirs["model"],
            table=tuple(table_of(ours["model"])),
            inputs=theirs["inputs"],
            to_ours=to_ours,
            call_ours=ours["call"],
            call_theirs=theirs["call"],
            loss_ours=ours["loss"],
            loss_theirs=theirs["loss"],
            **options,
        )

    def _weights(self, workload: Workload) -> dict[str, np.ndarray]:
        from jaxmodels.convert.core import to_state_dict

        return to_state_dict(perturb(self.build(workload)))

    def _inputs(self, workload: Workload, files: Path | None) -> dict[str, np.ndarray]:
        if files is None:
            return self.inputs(workload)
        from safetensors.numpy import load_file

        return load_file(files / "inputs.safetensors")


def to_ours(inputs: Inputs) -> dict[str, np.ndarray]:
    """The inputs as the Flax models take them: images with channels last, ids as int32."""
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    return {
        name: np.ascontiguousarray(value.transpose(0, 2, 3, 1))
        if value.ndim == 4
        else value.astype(np.int32)
        if np.issubdtype(value.dtype, np.integer)
        else value
        for name, value in arrays.items()
    }


def perturb(model: "nnx.Module") -> "nnx.Module":
    """Adds a little noise to every parameter: unit scales and zero biases would hide mistakes."""
    import jax.numpy as jnp
    from flax import nnx

    rng = np.random.default_rng(0)
    state = nnx.state(model, nnx.Param)
    for _, variable in nnx.to_flat_state(state):
        value = variable[...]
        variable[...] = value + jnp.asarray(0.01 * rng.standard_normal(value.shape), value.dtype)
    nnx.update(model, state)
    return model


def emoji_indices(batch: int) -> np.ndarray:
    """The indices of emoji that are spread over all groups."""
    from jaxmodels.data import emoji

    return np.linspace(0, len(emoji("openmoji", skin_tones=False)) - 1, batch).astype(int)


def emoji_images(batch: int, image_size: int) -> np.ndarray:
    """Emoji (batch, 3, image_size, image_size) float32 from -1 to 1, resized by pixels."""
    from jaxmodels.data import emoji

    nearest = np.arange(image_size) * 64 // image_size
    images = emoji("openmoji", skin_tones=False).images[emoji_indices(batch)]
    scaled = images[:, nearest][:, :, nearest].astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def emoji_labels(batch: int) -> np.ndarray:
    """The groups of the emoji of `emoji_images`, int64."""
    from jaxmodels.data import emoji

    return emoji("openmoji", skin_tones=False).labels[emoji_indices(batch)].astype(np.int64)
