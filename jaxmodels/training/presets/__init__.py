"""Settings that have a name: `jaxmodels train NAME` takes all of them from here, and flags change them.

There are three kinds. The first trains in minutes on two CPU cores, on the data in the package. `-gpu` is for one
GPU, on the same data. The others are the configurations that the papers and the packages' READMEs name, for your
own data. There is one module per model and one function per preset.
"""

import inspect
from collections.abc import Callable

from jaxmodels.training.experiment import Experiment
from jaxmodels.training.presets import colt5, glom, hourglass, mammut, scalable_vit


FUNCTIONS: dict[str, Callable[[], Experiment]] = {
    "glom-emoji": glom.emoji,
    "hourglass-sotu": hourglass.sotu,
    "colt5-vit-emoji": colt5.emoji,
    "mammut-emoji": mammut.emoji,
    "scalable-vit-emoji": scalable_vit.emoji,
    "glom-emoji-gpu": glom.emoji_gpu,
    "hourglass-sotu-gpu": hourglass.sotu_gpu,
    "colt5-vit-emoji-gpu": colt5.emoji_gpu,
    "mammut-emoji-gpu": mammut.emoji_gpu,
    "scalable-vit-emoji-gpu": scalable_vit.emoji_gpu,
    "glom-readme": glom.readme,
    "hourglass-enwik8": hourglass.enwik8,
    "hourglass-imagenet32": hourglass.imagenet32,
    "colt5-vit-readme": colt5.readme,
    "mammut-readme": mammut.readme,
    "mammut-paper": mammut.paper,
    "scalable-vit-readme": scalable_vit.readme,
}
PRESETS: dict[str, Experiment] = {name: function() for name, function in FUNCTIONS.items()}
DESCRIPTIONS: dict[str, str] = {name: inspect.getdoc(function) or "" for name, function in FUNCTIONS.items()}
