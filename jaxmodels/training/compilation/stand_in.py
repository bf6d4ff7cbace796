"""Data of the right shapes for presets that are meant for the user's own: a compiler asks for no more."""

from typing import Any

import numpy as np

from jaxmodels.data.datasets import (
    CaptionedImages,
    CaptionedSplits,
    LabelledImages,
    LabelledSplits,
    TextSplits,
)
from jaxmodels.training.experiment import (
    ClassificationExperiment,
    Experiment,
    GlomExperiment,
    HourglassExperiment,
    MaMMUTExperiment,
)


SOURCE = "stand-in data"


def stand_in_splits(experiment: Experiment) -> Any:
    """Splits for `experiment.task`: zeros, in the sizes that the settings name."""
    match experiment:
        case HourglassExperiment():
            text = bytes(experiment.model.max_seq_len + 1)
            return TextSplits(source=SOURCE, train=text, validation=text, test=text)
        case MaMMUTExperiment():
            shape = (experiment.image_size, experiment.image_size, experiment.encoder.channels)
            part = CaptionedImages(images=np.zeros((1, *shape), np.uint8), captions=("",))
            return CaptionedSplits(source=SOURCE, train=part, validation=part, test=part)
        case GlomExperiment():
            return _labelled(experiment.image_size, 3, classes=1)
        case ClassificationExperiment():
            model = experiment.model
            return _labelled(experiment.image_size, model.channels, classes=model.num_classes)
    raise TypeError(f"no stand-in data for {type(experiment).__name__}")


def _labelled(size: int, channels: int, *, classes: int) -> LabelledSplits:
    images = LabelledImages(
        images=np.zeros((1, size, size, channels), np.uint8), labels=np.zeros(1, np.int32)
    )
    names = tuple(str(number) for number in range(classes))
    return LabelledSplits(source=SOURCE, train=images, validation=images, test=images, class_names=names)
