"""What the image tasks share when they evaluate: batches of one size, and checks of the data. Shapes: b batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxmodels.data.datasets import CaptionedSplits, LabelledSplits
from jaxmodels.data.preprocessing import ImagePreprocessing
from jaxmodels.data.readers.image_files import Resize
from jaxmodels.training.draws import Draws
from jaxmodels.training.task import Call, Sample, Task
from jaxmodels.training.tasks.figures.images import input_figure


EVALUATION_BATCH = 128
INPUTS_SHOWN = 8  # training images in the report


def call_in_batches(
    call: Call, name: str, n: int, batch: Callable[[Int[np.ndarray, " b"]], Mapping[str, np.ndarray]]
) -> Any:
    """The outputs of `call(name, …)` for n images, `EVALUATION_BATCH` at a time.

    Args:
      call: runs a function of the task.
      name: the function's name.
      n: images in all.
      batch: gives what the function reads, for these numbers of images. The last image fills up the last
        batch, so that only one shape is compiled.
    """
    numbers = np.minimum(np.arange(-(-n // EVALUATION_BATCH) * EVALUATION_BATCH), n - 1)
    outputs = [call(name, batch(part)) for part in numbers.reshape(-1, EVALUATION_BATCH)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *outputs)


def require_image_splits(splits: LabelledSplits | CaptionedSplits) -> None:
    """ValueError unless there are images of one size to train on, to validate with, and to test on."""
    shape = splits.train.images.shape[1:]
    for name in ("train", "validation", "test"):
        images = getattr(splits, name).images
        if not len(images):
            raise ValueError(f"every split must hold images; got none in {name} of {splits.source}")
        if images.shape[1:] != shape:
            raise ValueError(
                f"all images must have one shape; got {images.shape[1:]} in {name}, {shape} in train "
                f"of {splits.source}"
            )


def image_preprocessing(shape: tuple[int, ...], resize: Resize) -> ImagePreprocessing | None:
    """What makes images of this shape (n height width c) from files, and scales them; None unless they are square."""
    _, height, width, channels = shape
    return ImagePreprocessing(size=height, channels=channels, resize=resize) if height == width else None


def training_inputs(task: Task, names: Sequence[str]) -> Sample:
    """A few training images from all over the data, as the model sees them: scaled and changed at random."""
    indices = np.unique(np.linspace(0, task.examples - 1, INPUTS_SHOWN).round().astype(int))
    batch = jax.jit(task.inputs)(task.batch(indices, Draws(0, np.arange(len(indices)))))
    return Sample(
        title="Training inputs",
        caption="Training images as the model sees them, shifted and changed at random.",
        figure=input_figure({name: np.asarray(batch[name]) for name in names}),
    )
