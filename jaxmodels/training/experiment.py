"""The settings of a run: one frozen dataclass per model, whose fields are the flags of `jaxmodels train`."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from jaxmodels.checks import local_path, require_between
from jaxmodels.data import CaptionedSplits, captioned_images, labelled_images, texts
from jaxmodels.data.embedded.emoji_splits import emoji_captions, emoji_splits
from jaxmodels.data.embedded.state_of_the_union import union_splits
from jaxmodels.data.readers.image_files import Resize
from jaxmodels.data.readers.paths import displayed
from jaxmodels.models.colt5 import ConditionalRoutedViTConfig
from jaxmodels.models.glom import GlomConfig
from jaxmodels.models.hourglass_config import HourglassTransformerLMConfig
from jaxmodels.models.mammut import MaMMUTConfig
from jaxmodels.models.scalable_vit import ScalableViTConfig
from jaxmodels.models.simple_vit import SimpleViTConfig
from jaxmodels.nn import Implementation
from jaxmodels.training.mesh import HostsConfig, MeshConfig
from jaxmodels.training.optimizer import LARGEST_FLOAT32, MOST_STEPS, OptimizerConfig
from jaxmodels.training.task import Task


# Larger numbers are mistakes. They are refused before an array of that size is asked for.
LARGEST_SETTING = {"batch_size": 2**24, "image_size": 2**13, "context": 2**16}
LARGEST_IN_MODEL = 2**24
MOST_LAYERS = 4096  # in all stages together

Precision = Literal["float32", "tensorfloat32", "bfloat16", "float64"]

# What may differ between a run and its continuation. It changes no more of a step than its rounding; `steps` moves
# the end of the learning rate's schedule. Data are compared by content, so their path may change.
MAY_CHANGE = (
    "workdir",
    "data",
    "steps",
    "resume",
    "mesh",
    "hosts",
    "remat",
    "attention",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "keep",
    "tensorboard",
    "profile",
)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Settings of all runs."""

    workdir: Path  # everything that the run writes goes here
    steps: int  # optimiser steps
    batch_size: int  # examples per step, over all devices and hosts
    seed: int = 0  # of the initial weights, the order of the data, and what is random in it
    data: Path | None = None  # your own data, see docs/train.md; by default the data in the package
    resume: bool = False  # continue from the newest checkpoint in workdir, or begin if there is none
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    # Type of the computation; parameters, optimiser and losses are float32 (float64 with float64).
    # "float32" really is: accelerators that would round products to fewer digits are told not to.
    precision: Precision = "float32"
    accumulate: int = 1  # parts into which a batch is cut to save memory; the gradient stays the same
    remat: bool = False  # recompute activations in the backward pass: less memory, more time
    attention: Implementation = "auto"  # the fused kernel of a GPU or TPU; see `jaxmodels.nn.attend`
    mesh: MeshConfig = field(default_factory=MeshConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    log_every: int | None = None  # steps; by default a hundredth of the run
    evaluate_every: int | None = None  # steps; by default a tenth of the run
    checkpoint_every: int | None = None  # steps; by default a tenth of the run
    keep: int = 2  # checkpoints
    skip_unreadable: bool = False  # leave out images that cannot be read, and count them
    tensorboard: bool = False  # also write WORKDIR/tensorboard (needs jaxmodels[tensorboard])
    profile: bool = False  # trace five steps into WORKDIR/profile, for xprof or Perfetto

    def __post_init__(self) -> None:
        for name in ("workdir", "data"):
            object.__setattr__(self, name, local_path(name, getattr(self, name)))
        _require_workdir(self.workdir, self.data)
        for name in ("steps", "batch_size", "accumulate", "keep"):
            require_between(name, getattr(self, name), 1, LARGEST_SETTING.get(name, MOST_STEPS))
        for name in ("log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                require_between(name, getattr(self, name), 1, MOST_STEPS)
        require_between("seed", self.seed, 0, 2**63 - 1)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate={self.accumulate}; "
                f"got batch_size={self.batch_size}"
            )
        if self.attention == "cudnn" and self.precision != "bfloat16":
            raise ValueError(
                f"precision must be 'bfloat16' with attention='cudnn'; got precision={self.precision!r}"
            )
        if self.attention == "pallas" and self.precision == "float64":
            raise ValueError(
                "precision must be 'bfloat16', 'float32' or 'tensorfloat32' with attention='pallas'; "
                "got precision='float64'"
            )
        for name in ("model", "encoder"):
            if hasattr(self, name):
                _require_sizes(name, getattr(self, name))

    def task(self, splits: Any = None) -> Task:
        """Says what is trained, on which data; raises where either is wrong.

        Args:
          splits: data of the kind of this task; None reads what the settings name.
        """
        raise NotImplementedError

    @property
    def resize(self) -> Resize:
        """How images come to their size: the embedded ones by means over boxes, files by interpolation."""
        return "box" if self.data is None else "bilinear"

    def fitted_to(self, task: Task) -> Self:
        """The same with the model that `task` trains: its classes, channels and image size are those of the data."""
        names = {"model": "config", "encoder": "encoder"}
        changes = {mine: getattr(task, theirs) for mine, theirs in names.items() if hasattr(self, mine)}
        return replace(self, **changes)

    def describe(self) -> dict[str, Any]:
        """All settings, as JSON has them."""
        return _plain(asdict(self))


@dataclass(frozen=True, kw_only=True)
class HourglassExperiment(Experiment):
    """Next-byte language modelling."""

    model: HourglassTransformerLMConfig
    first_year: int = 1790  # of the addresses in the package to train on

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("first_year", self.first_year, 0, 9999)

    def task(self, splits: Any = None) -> Task:
        from jaxmodels.training.tasks.language import LanguageModelling

        if splits is None:
            splits = union_splits(first_year=self.first_year) if self.data is None else texts(self.data)
        return LanguageModelling(self.model, splits)


@dataclass(frozen=True, kw_only=True)
class ImageExperiment(Experiment):
    """Settings of all runs on labelled images."""

    image_size: int = 32  # side to which images are resized
    protocol: Literal["across-styles", "within-style"] = "across-styles"  # how embedded emoji are split
    shift: int = 2  # shift images by up to this many pixels, at random

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("image_size", self.image_size, 1, LARGEST_SETTING["image_size"])
        require_between("shift", self.shift, 0, self.image_size - 1)

    def splits(self, *, require_classes: bool):
        if self.data is None:
            return emoji_splits(self.protocol, size=self.image_size)
        return labelled_images(
            self.data,
            size=self.image_size,
            skip_unreadable=self.skip_unreadable,
            require_classes=require_classes,
        )


@dataclass(frozen=True, kw_only=True)
class ClassificationExperiment(ImageExperiment):
    """Classification. The number of classes and channels is that of the data."""

    model: ScalableViTConfig | ConditionalRoutedViTConfig
    flip: bool = False  # mirror images at random
    zoom: float = 0.0  # enlarge or reduce images by up to this share, at random
    recolor: float = 0.0  # multiply and shift their channels by up to this share, at random
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("zoom", "recolor", "label_smoothing"):
            require_share(name, getattr(self, name))

    def task(self, splits: Any = None) -> Task:
        from jaxmodels.training.tasks.classification import Classification

        return Classification(
            self.model,
            self.splits(require_classes=True) if splits is None else splits,
            shift=self.shift,
            flip=self.flip,
            zoom=self.zoom,
            recolor=self.recolor,
            label_smoothing=self.label_smoothing,
            resize=self.resize,
        )


@dataclass(frozen=True, kw_only=True)
class ScalableViTExperiment(ClassificationExperiment):
    """Classification with ScalableViT."""

    model: ScalableViTConfig


@dataclass(frozen=True, kw_only=True)
class CoLT5Experiment(ClassificationExperiment):
    """Classification with CoLT5's conditionally routed ViT."""

    model: ConditionalRoutedViTConfig


@dataclass(frozen=True, kw_only=True)
class GlomExperiment(ImageExperiment):
    """Denoising, and a linear probe on the top level."""

    model: GlomConfig
    noise: float = 1.0  # standard deviation of the noise, for pixels between -1 and 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise <= LARGEST_FLOAT32:
            raise ValueError(f"noise must be a finite number > 0; got noise={self.noise!r}")

    def task(self, splits: Any = None) -> Task:
        from jaxmodels.training.tasks.denoising import Denoising

        if splits is None:
            splits = self.splits(require_classes=False)
        return Denoising(self.model, splits, noise=self.noise, shift=self.shift, resize=self.resize)


@dataclass(frozen=True, kw_only=True)
class MaMMUTExperiment(Experiment):
    """Captioning and contrastive learning on images with captions."""

    model: MaMMUTConfig
    encoder: SimpleViTConfig
    image_size: int = 32  # side to which images are resized
    context: int = 64  # longest caption, in bytes with its two marks
    shift: int = 2  # shift images by up to this many pixels, at random
    zoom: float = 0.0  # enlarge or reduce images by up to this share, at random
    recolor: float = 0.0  # multiply and shift their channels by up to this share, at random
    skip_long: bool = False  # leave out captions that do not fit, and count them

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("image_size", self.image_size, 1, LARGEST_SETTING["image_size"])
        require_between("context", self.context, 3, LARGEST_SETTING["context"])
        require_between("shift", self.shift, 0, self.image_size - 1)
        for name in ("zoom", "recolor"):
            require_share(name, getattr(self, name))

    def task(self, splits: Any = None) -> Task:
        from jaxmodels.training.tasks.captioning import Captioning

        return Captioning(
            self.model,
            self.encoder,
            self._splits() if splits is None else splits,
            context=self.context,
            shift=self.shift,
            zoom=self.zoom,
            recolor=self.recolor,
            resize=self.resize,
        )

    def _splits(self) -> CaptionedSplits:
        if self.data is None:
            return emoji_captions(size=self.image_size)
        return captioned_images(
            self.data,
            size=self.image_size,
            longest=self.context - 2,
            skip_unreadable=self.skip_unreadable,
            skip_long=self.skip_long,
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings in which a run and its continuation differ though they must not, one line each."""
    lines = []
    for key in sorted((before.keys() | now.keys()) - set(MAY_CHANGE)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += [f"{key}.{line}" for line in differences(old, new)]
        elif old != new:
            lines.append(f"{key}: {old!r} in the run, {new!r} now")
    return lines


def require_given(wanted: Experiment, fitted: Experiment, given: Collection[str]) -> None:
    """ValueError where a setting that the user gave is not the one that fits the data.

    Args:
      wanted: the experiment that the user described.
      fitted: `wanted.fitted_to(task)`.
      given: the settings that were given, such as "model.num_classes".
    """
    for name in sorted(given):
        values = []
        for described in (wanted.describe(), fitted.describe()):
            for part in name.split("."):
                described = described.get(part) if isinstance(described, dict) else None
            values.append(described)
        if values[0] != values[1]:
            raise ValueError(
                f"{name} must be that of the data, {values[1]!r}, or be left out; got {name}={values[0]!r}"
            )


def require_share(name: str, value: float) -> float:
    """Returns `value`; ValueError unless 0 ≤ value < 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1); got {name}={value!r}")
    return value


def _require_workdir(workdir: Any, data: Any) -> None:
    """ValueError where checkpoints cannot be written, or where the run's own files would become data."""
    if not isinstance(workdir, Path):  # tyro's mark for a value that must be given
        return
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            "workdir must have a name in UTF-8, which the files of checkpoints need; "
            f"got workdir={displayed(str(workdir))!r}"
        ) from error
    inside = isinstance(data, Path) and Path(os.path.realpath(workdir)).is_relative_to(os.path.realpath(data))
    if inside and data.is_dir():
        raise ValueError(
            "workdir must be outside of the folder of the data, or the files of the run would be read as data; "
            f"got workdir={str(workdir)!r}, data={str(data)!r}"
        )


def _require_sizes(name: str, config: Any) -> None:
    """ValueError where a size of a model is beyond any that could be meant."""
    if not is_dataclass(config):  # tyro asks with placeholders
        return
    for item in fields(config):
        numbers = list(_integers(getattr(config, item.name)))
        if any(number > LARGEST_IN_MODEL for number in numbers):
            raise ValueError(
                f"{name}.{item.name} must be at most {LARGEST_IN_MODEL:,}; got {getattr(config, item.name)!r}"
            )
        if item.name == "depth" and sum(numbers) > MOST_LAYERS:
            raise ValueError(
                f"{name}.depth must be at most {MOST_LAYERS:,} layers; got {getattr(config, item.name)!r}"
            )


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _integers(part)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case Path():
            return str(value)
        case _:
            return value
