"""A copy of the log for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmodels.training.task import Sample


class TensorBoard:
    """Writes scalars, figures and texts into a folder.

    Raises:
      ModuleNotFoundError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require_tensorboard()
        from tensorboardX import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.figure is not None:
                self.writer.add_figure(sample.title, sample.figure, step)
            if sample.text is not None:
                self.writer.add_text(sample.title, sample.text, step)

    def close(self) -> None:
        self.writer.close()


def require_tensorboard() -> None:
    """ModuleNotFoundError, with the way out, unless tensorboardX is installed."""
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--tensorboard needs tensorboardX: pip install 'jaxmodels[tensorboard]', "
            "or pip install -e '.[tensorboard]' in a checkout"
        ) from error
